// Streams: what one run needs beside others. A CUDA stream with a side branch, device memory that grows to what the largest
// run needed, page-locked memory, and the graphs captured for the shapes seen lately. A run takes a stream for its whole
// length and waits on it, so nothing is under way on a stream that nobody has.
#pragma once

#include <array>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "../kernels.h"
#include "gpu.h"
#include "launch.h"

namespace desap::cuda {

// Whatever a graph depends on: two runs with the same key replay the same graph.
using GraphKey = std::array<int64_t, 24>;

class Stream {
 public:
  Stream(const std::shared_ptr<Gpu>&, bool overlap);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Status open();

  // Device memory for the run at hand. Graphs hold its address: when it moves, they go.
  Status reserve(int64_t device_bytes, int64_t mirror_bytes, int64_t staging_bytes);
  char* device() const { return workspace_.data(); }
  // Page-locked memory, a mirror of the first bytes of `device`: what a run sends and what it gets back.
  char* mirror() const { return mirror_.data(); }
  // Page-locked memory for inputs that the GPU cannot read where they are.
  char* staging() const { return staging_.data(); }

  // Replays the key's graph, which `enqueue` makes where there is none yet, and waits for its end. The time in
  // milliseconds is the device's.
  Status run(const GraphKey& key, const std::function<void()>& enqueue, double* milliseconds);
  // Waits for what was enqueued without a graph. After an error of `queue` nothing is under way any more.
  Status finish();

  // The side branch, inside `enqueue`: what is put on it from now on waits for all that is on the main queue.
  void fork();
  // The main queue goes on when the branch has come this far.
  void join();

  Queue queue, branch;
  const std::shared_ptr<Gpu> gpu;

 private:
  struct Graph {
    GraphKey key;
    cudaGraphExec_t executable;
  };

  Status capture(const GraphKey&, const std::function<void()>& enqueue);
  void drop_graphs(size_t limit);
  cudaError_t wait();

  DeviceBuffer workspace_;
  PinnedBuffer mirror_, staging_;
  std::list<Graph> graphs_;  // last used first
  cudaEvent_t forked_ = nullptr, joined_ = nullptr, started_ = nullptr, done_ = nullptr;
};

// A GPU with its precision and its streams. Shared by the context and all that it made, so that an analysis may outlive the
// context and be read and destroyed on any thread.
class Engine : public std::enable_shared_from_this<Engine> {
 public:
  Engine(int device, Precision, bool overlap, int streams);
  ~Engine();

  const std::shared_ptr<Gpu> gpu;
  const Precision precision;

 private:
  friend class StreamLock;

  Status take(std::unique_ptr<Stream>*);
  void give_back(std::unique_ptr<Stream>) noexcept;

  const bool overlap_;
  std::mutex mutex_;
  std::condition_variable freed_;
  int vacant_;                               // streams that may still be made
  std::vector<std::unique_ptr<Stream>> idle_;
};

// One run's stream, and this thread made ready for the GPU.
class StreamLock {
 public:
  explicit StreamLock(Engine& engine) : engine_(engine) {}
  ~StreamLock();
  StreamLock(const StreamLock&) = delete;
  StreamLock& operator=(const StreamLock&) = delete;

  Status take() { return engine_.take(&stream_); }
  Stream& operator*() const { return *stream_; }
  Stream* operator->() const { return stream_.get(); }

 private:
  Engine& engine_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace desap::cuda

namespace desap {

struct Context {
  std::shared_ptr<cuda::Engine> engine;
};

}  // namespace desap
