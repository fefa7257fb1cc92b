#include "stream.h"

#include <chrono>
#include <new>
#include <utility>

namespace desap::cuda {
namespace {

constexpr size_t kept_graphs = 16;

// A run for one image is done within some 100 us, and a thread that sleeps takes tens of them to wake up: so the wait
// starts awake, for about as long as the shortest runs take. Longer ones leave the processor to others.
constexpr std::chrono::microseconds awake{100};

}  // namespace

// ----------------------------------------------------------------------------------------------------------- stream

Stream::Stream(const std::shared_ptr<Gpu>& gpu_, bool overlap) : gpu(gpu_) { queue.overlap = overlap; }

Status Stream::open() {
  const auto stream = [&](Queue& to) { to.note(cudaStreamCreateWithFlags(&to.stream, cudaStreamNonBlocking)); };
  const auto event = [&](cudaEvent_t* to, unsigned flags) { queue.note(cudaEventCreateWithFlags(to, flags)); };
  stream(queue);
  stream(branch);
  queue.note(branch.error);
  event(&forked_, cudaEventDisableTiming);
  event(&joined_, cudaEventDisableTiming);
  event(&started_, 0);
  event(&done_, cudaEventBlockingSync);
  return gpu->status(std::exchange(queue.error, cudaSuccess), "stream");
}

Stream::~Stream() {
  if (!gpu->enter_to_free()) return;
  drop_graphs(0);
  for (cudaEvent_t event : {forked_, joined_, started_, done_}) {
    if (event) gpu->status(cudaEventDestroy(event), "event");
  }
  for (cudaStream_t stream : {queue.stream, branch.stream}) {
    if (stream) gpu->status(cudaStreamDestroy(stream), "stream");
  }
}

void Stream::drop_graphs(size_t limit) {
  while (graphs_.size() > limit) {
    if (!gpu->lost()) gpu->status(cudaGraphExecDestroy(graphs_.back().executable), "graph");
    graphs_.pop_back();
  }
}

Status Stream::reserve(int64_t device_bytes, int64_t mirror_bytes, int64_t staging_bytes) {
  if (device_bytes > workspace_.capacity() || mirror_bytes > mirror_.capacity()) drop_graphs(0);
  if (device_bytes > workspace_.capacity())
    DESAP_TRY(gpu->status(workspace_.allocate(gpu, device_bytes), "device memory"));
  if (mirror_bytes > mirror_.capacity())
    DESAP_TRY(gpu->status(mirror_.allocate(gpu, mirror_bytes), "page-locked memory"));
  if (staging_bytes > staging_.capacity())
    DESAP_TRY(gpu->status(staging_.allocate(gpu, staging_bytes), "page-locked memory"));
  return {};
}

void Stream::fork() {
  queue.note(cudaEventRecord(forked_, queue.stream));
  queue.note(cudaStreamWaitEvent(branch.stream, forked_, 0));
  branch.note(queue.error);  // a branch that did not become part of the capture would run at once
}

void Stream::join() {
  queue.note(branch.error);
  queue.note(cudaEventRecord(joined_, branch.stream));
  queue.note(cudaStreamWaitEvent(queue.stream, joined_, 0));
  queue.follows_kernel = false;
}

Status Stream::capture(const GraphKey& key, const std::function<void()>& enqueue) {
  drop_graphs(kept_graphs - 1);
  std::list<Graph> entry{{key, nullptr}};
  // Relaxed: other threads may allocate meanwhile, and this one loads kernels at their first launch.
  DESAP_TRY(gpu->status(cudaStreamBeginCapture(queue.stream, cudaStreamCaptureModeRelaxed), "graph"));
  queue.follows_kernel = false;
  try {
    enqueue();
  } catch (const std::bad_alloc&) {
    queue.note(cudaErrorMemoryAllocation);
  }
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(queue.stream, &graph);
  queue.note(ended);
  // Where it was refused the stream may still be in its capture, and no later call could use it. Where it is not, this says so only.
  if (ended != cudaSuccess && !gpu->lost()) cudaStreamEndCapture(queue.stream, &graph);
  cudaGraphExec_t executable = nullptr;
  if (!queue.failed()) queue.note(cudaGraphInstantiate(&executable, graph, 0));
  branch.error = cudaSuccess;
  const Status status = gpu->status(std::exchange(queue.error, cudaSuccess), "graph");
  if (graph && !gpu->lost()) cudaGraphDestroy(graph);
  DESAP_TRY(status);
  entry.front().executable = executable;
  graphs_.splice(graphs_.begin(), entry);
  return {};
}

Status Stream::run(const GraphKey& key, const std::function<void()>& enqueue, double* milliseconds) {
  auto known = graphs_.begin();
  while (known != graphs_.end() && known->key != key) ++known;
  if (known == graphs_.end()) {
    DESAP_TRY(capture(key, enqueue));
  } else {
    graphs_.splice(graphs_.begin(), graphs_, known);
  }
  queue.note(cudaEventRecord(started_, queue.stream));
  if (!queue.failed()) queue.note(cudaGraphLaunch(graphs_.front().executable, queue.stream));
  DESAP_TRY(finish());
  float elapsed = 0;
  DESAP_TRY(gpu->status(cudaEventElapsedTime(&elapsed, started_, done_), "event"));
  *milliseconds = static_cast<double>(elapsed);
  return {};
}

cudaError_t Stream::wait() {
  const cudaError_t recorded = cudaEventRecord(done_, queue.stream);
  if (recorded != cudaSuccess) return recorded;
  const auto end = std::chrono::steady_clock::now() + awake;
  while (std::chrono::steady_clock::now() < end) {
    const cudaError_t state = cudaEventQuery(done_);
    if (state != cudaErrorNotReady) return state;
  }
  return cudaEventSynchronize(done_);
}

Status Stream::finish() {
  const Status enqueued = gpu->status(std::exchange(queue.error, cudaSuccess), "device memory");
  queue.follows_kernel = false;
  if (gpu->lost()) return enqueued;
  const Status ended = gpu->status(wait(), "device memory");
  if (!ended.good() && !gpu->lost()) {
    // Memory that the GPU works on must not be given back: either the stream comes to its end, or the GPU counts as lost.
    const cudaError_t drained = cudaStreamSynchronize(queue.stream);
    if (drained != cudaSuccess) return gpu->lose(drained);
  }
  // An error of the launch explains what came after it, unless that killed the GPU.
  return enqueued.good() || gpu->lost() ? ended : enqueued;
}

// ----------------------------------------------------------------------------------------------------------- engine

Engine::Engine(int device, Precision precision_, bool overlap, int streams)
    : gpu(std::make_shared<Gpu>(device)), precision(precision_), overlap_(overlap), vacant_(streams) {
  idle_.reserve(static_cast<size_t>(streams));
}

Engine::~Engine() = default;

Status Engine::take(std::unique_ptr<Stream>* stream) {
  DESAP_TRY(gpu->enter());
  {
    std::unique_lock<std::mutex> lock(mutex_);
    freed_.wait(lock, [&] { return !idle_.empty() || vacant_ > 0; });
    if (gpu->lost()) return gpu->enter();
    if (!idle_.empty()) {
      *stream = std::move(idle_.back());
      idle_.pop_back();
      return {};
    }
    vacant_--;
  }
  Status opened{Code::out_of_memory, "stream"};
  std::unique_ptr<Stream> made(new (std::nothrow) Stream(gpu, overlap_));
  if (made) opened = made->open();
  if (opened.good()) {
    *stream = std::move(made);
  } else {
    made.reset();
    std::lock_guard<std::mutex> lock(mutex_);
    vacant_++;
    freed_.notify_one();
  }
  return opened;
}

void Engine::give_back(std::unique_ptr<Stream> stream) noexcept {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(stream));
  }
  freed_.notify_one();
}

StreamLock::~StreamLock() {
  if (stream_) engine_.give_back(std::move(stream_));
}

}  // namespace desap::cuda
