// The runtime API. Work on a stream is executed as late as the API permits: when something waits for it, by the thread
// that waits. A result that is read without waiting is then stale or poison. Copies between the device and pageable
// memory and all work on the legacy stream are done at once, as CUDA's are (almost).
//
// A graph's nodes run in a random order that their dependencies allow.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <sstream>
#include <thread>
#include <unordered_map>
#include <vector>

#include "sanitize.h"
#include "simt_control.h"

namespace desap::simt {
namespace {

using Lock = std::unique_lock<std::mutex>;
using Work = std::function<void()>;

constexpr int runtime_version = 13000;
constexpr size_t guard_bytes = 256;
constexpr unsigned char guard_byte = 0xc3;
constexpr size_t shared_default = 48 * 1024, shared_largest = 99 * 1024;

// A point in a stream's work: done when all before it is.
struct Mark {
  CUstream_st* stream = nullptr;
  bool done = false;
  std::chrono::steady_clock::time_point time{};
};

struct Operation {
  Work work;                    // or
  std::shared_ptr<Mark> await;  // or
  std::shared_ptr<Mark> reach;
};

struct Node {
  Work work;
  std::vector<size_t> after;
};

struct Capture {
  CUstream_st* origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  bool invalid = false;
  std::vector<Node> nodes;
  std::vector<CUstream_st*> streams;  // that take part
};

struct Allocation {
  size_t bytes;
  bool device;
  unsigned char* base;  // what malloc gave
};

}  // namespace
}  // namespace desap::simt

struct CUstream_st {
  bool blocking = true;  // waits for the legacy stream, and it for this one
  std::deque<desap::simt::Operation> queue;
  uint64_t submitted = 0, finished = 0;
  bool running = false;  // some thread executes its first operation

  std::shared_ptr<desap::simt::Capture> capture;
  std::set<size_t> frontier;  // what the next captured node comes after
};

struct CUevent_st {
  bool timing = true;
  std::shared_ptr<desap::simt::Mark> mark;  // of the last record
  std::shared_ptr<desap::simt::Capture> capture;
  std::set<size_t> frontier;
};

struct CUgraph_st { std::shared_ptr<const std::vector<desap::simt::Node>> nodes; };
struct CUgraphExec_st { std::shared_ptr<const std::vector<desap::simt::Node>> nodes; };

namespace desap::simt {
namespace {

// -------------------------------------------------------------------------------------------------------- settings

// One line of the environment or of the control file.
void apply(Settings& s, const std::string& name, const std::string& value) {
  std::istringstream in(value);
  if (name == "seed") in >> s.seed;
  else if (name == "devices") in >> s.devices;
  else if (name == "driver") in >> s.driver;
  else if (name == "memory") in >> s.memory;
  else if (name == "capability") { char dot; in >> s.major >> dot >> s.minor; }
  else if (name == "fail") {
    std::string what;
    int error = 0;
    in >> what >> s.nth >> error;
    s.error = static_cast<cudaError_t>(error);
    s.fault = what == "allocation" ? Fault::allocation
              : what == "launch"   ? Fault::launch
              : what == "call"     ? Fault::call
                                   : Fault::none;
    if (s.fault == Fault::none) in.setstate(std::ios::failbit);
    else if (in && !(in >> s.function)) in.clear();  // of any function
  } else {
    in.setstate(std::ios::failbit);
  }
  if (!in) {
    std::fprintf(stderr, "simt: bad setting: %s %s\n", name.c_str(), value.c_str());
    std::abort();
  }
}

Settings from_environment() {
  Settings s;
  for (const char* name : {"seed", "devices", "driver", "memory", "capability", "fail"}) {
    std::string variable = "DESAP_SIMT_";
    for (const char* c = name; *c; c++) variable += static_cast<char>(*c - 'a' + 'A');
    if (const char* value = std::getenv(variable.c_str())) apply(s, name, value);
  }
  return s;
}

// ----------------------------------------------------------------------------------------------------------- state

struct Runtime {
  std::mutex mutex;                 // guards all below, and all objects
  std::condition_variable changed;  // some stream finished an operation
  Settings settings = from_environment();
  int64_t until_fault = settings.nth;
  cudaError_t dead = cudaSuccess;   // the error that killed the context
  std::string control;              // text of the control file

  std::map<uintptr_t, Allocation> allocations;
  size_t device_bytes = 0;
  CUstream_st legacy;
  std::map<CUstream_st*, std::shared_ptr<CUstream_st>> streams;
  std::set<std::shared_ptr<Capture>> captures;
  int64_t events = 0, graphs = 0, executables = 0;
  std::unordered_map<const void*, size_t> shared_limits;

  bool collecting = false;
  std::vector<std::string> failures;
  uint64_t random = 1;
};

// Never destroyed: streams may outlive main().
Runtime& runtime() {
  static Runtime* const it = new Runtime;
  return *it;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

cudaError_t say(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

bool kills(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorCudartUnloading:
    case cudaErrorDeviceUninitialized:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

void start_anew(Runtime& r, const Settings& settings) {
  r.settings = settings;
  r.until_fault = settings.nth;
  r.dead = cudaSuccess;
}

const char* control_file() {
  static const char* const path = std::getenv("DESAP_SIMT_CONTROL");
  return path;
}

void read_control(Runtime& r) {
  if (!control_file()) return;
  std::ifstream file(control_file());
  std::stringstream text;
  text << file.rdbuf();
  if (text.str() == r.control) return;
  r.control = text.str();
  Settings settings = from_environment();
  for (std::string line; std::getline(text, line);) {
    const size_t space = line.find(' ');
    if (space != std::string::npos) apply(settings, line.substr(0, space), line.substr(space + 1));
  }
  start_anew(r, settings);
}

// Counts down to the fault; its error when it is due.
cudaError_t fault(Runtime& r, Fault kind, const char* function = nullptr) {
  if (function && !r.settings.function.empty() && r.settings.function != function) return cudaSuccess;
  if (r.settings.fault != kind || r.until_fault <= 0 || --r.until_fault > 0) return cudaSuccess;
  if (control_file()) std::ofstream(std::string(control_file()) + ".fired") << r.control;
  if (kills(r.settings.error)) r.dead = r.settings.error;
  return r.settings.error;
}

cudaError_t device_state(const Runtime& r) {
  if (r.settings.driver < runtime_version) return cudaErrorInsufficientDriver;
  if (r.settings.devices == 0) return cudaErrorNoDevice;
  return r.dead;
}

// What every call of the API does first. With an error there is nothing more to do.
#define DESAP_ENTER()                                                       \
  Runtime& r = runtime();                                                   \
  Lock lock(r.mutex);                                                       \
  read_control(r);                                                          \
  if (const cudaError_t e = device_state(r)) return say(e);                 \
  if (const cudaError_t e = fault(r, Fault::call, __func__)) return say(e)

// ---------------------------------------------------------------------------------------------------------- memory

std::map<uintptr_t, Allocation>::iterator find(Runtime& r, const void* pointer) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
  auto next = r.allocations.upper_bound(at);
  if (next == r.allocations.begin()) return r.allocations.end();
  --next;
  return at < next->first + std::max<size_t>(next->second.bytes, 1) ? next : r.allocations.end();
}

void collect_or_abort(Runtime& r, const std::string& message) {
  if (r.collecting) {
    r.failures.push_back(message);
    return;
  }
  std::fflush(stdout);
  std::fprintf(stderr, "simt: %s\nsimt: DESAP_SIMT_SEED=%llu\n", message.c_str(),
               static_cast<unsigned long long>(r.settings.seed));
  std::abort();
}

void check_guards(Runtime& r, uintptr_t address, const Allocation& a, const std::string& when) {
  if (sanitized) return;
  auto* const begin = reinterpret_cast<unsigned char*>(address);
  for (unsigned char* guard : {begin - guard_bytes, begin + a.bytes}) {
    const auto wrong = std::find_if(guard, guard + guard_bytes, [](unsigned char c) { return c != guard_byte; });
    if (wrong == guard + guard_bytes) continue;
    collect_or_abort(r, "write at offset " + std::to_string(wrong - begin) + " of an allocation of " +
                            std::to_string(a.bytes) + " bytes, found " + when);
    std::memset(guard, guard_byte, guard_bytes);
  }
}
void check_all_guards(Runtime& r, const std::string& when) {
  for (const auto& [address, allocation] : r.allocations) check_guards(r, address, allocation, when);
}

cudaError_t allocate(Runtime& r, void** pointer, size_t bytes, bool device) {
  *pointer = nullptr;
  if (const cudaError_t e = fault(r, Fault::allocation)) return e;
  if (bytes == 0) return cudaSuccess;
  if (device && r.device_bytes + bytes > r.settings.memory) return cudaErrorMemoryAllocation;
  auto* const base = static_cast<unsigned char*>(std::malloc(bytes + 2 * guard_bytes + 256));
  if (!base) return cudaErrorMemoryAllocation;
  unsigned char* const begin = base + guard_bytes + (256 - reinterpret_cast<uintptr_t>(base) % 256) % 256;
  std::memset(begin - guard_bytes, guard_byte, guard_bytes);
  poison(begin, bytes);
  std::memset(begin + bytes, guard_byte, guard_bytes);
  forbid(begin - guard_bytes, guard_bytes);
  forbid(begin + bytes, guard_bytes);
  r.allocations[reinterpret_cast<uintptr_t>(begin)] = {bytes, device, base};
  if (device) r.device_bytes += bytes;
  *pointer = begin;
  return cudaSuccess;
}

cudaError_t release(Runtime& r, void* pointer, bool device) {
  const auto it = r.allocations.find(reinterpret_cast<uintptr_t>(pointer));
  if (it == r.allocations.end() || it->second.device != device) return cudaErrorInvalidValue;
  check_guards(r, it->first, it->second, "when it was freed");
  if (device) r.device_bytes -= it->second.bytes;
  poison(pointer, it->second.bytes);
  permit(static_cast<unsigned char*>(pointer) - guard_bytes, it->second.bytes + 2 * guard_bytes);
  std::free(it->second.base);
  r.allocations.erase(it);
  return cudaSuccess;
}

enum class Place { pageable, pinned, device, invalid };
Place place_of(Runtime& r, const void* pointer, size_t bytes) {
  const auto it = find(r, pointer);
  if (it == r.allocations.end()) return Place::pageable;
  if (reinterpret_cast<uintptr_t>(pointer) + bytes > it->first + it->second.bytes) return Place::invalid;
  return it->second.device ? Place::device : Place::pinned;
}

// -------------------------------------------------------------------------------------------------------- execution

void execute(Runtime& r, Lock& lock, const Work& work) {
  if (r.dead != cudaSuccess) return;
  lock.unlock();
  work();
  lock.lock();
}

void finish(Runtime& r, Lock& lock, const Mark& mark);

void run_first(Runtime& r, Lock& lock, CUstream_st& stream) {
  stream.running = true;
  Operation operation = std::move(stream.queue.front());
  if (operation.await) finish(r, lock, *operation.await);
  if (operation.work) execute(r, lock, operation.work);
  if (operation.reach) {
    operation.reach->done = true;
    operation.reach->time = std::chrono::steady_clock::now();
  }
  operation = {};
  stream.queue.pop_front();
  stream.finished++;
  stream.running = false;
  r.changed.notify_all();
}

// Lets this thread, or the one that is at it, execute the stream until `reached`. Streams that wait for each other do
// no harm: what a stream waits for was always submitted earlier.
template <class Reached>
void advance(Runtime& r, Lock& lock, CUstream_st& stream, const Reached& reached) {
  while (!reached()) {
    if (stream.running) {
      r.changed.wait(lock);
    } else {
      run_first(r, lock, stream);
    }
  }
}
void finish(Runtime& r, Lock& lock, const Mark& mark) {
  if (!mark.done) advance(r, lock, *mark.stream, [&] { return mark.done; });
}
void drain(Runtime& r, Lock& lock, CUstream_st& stream) {
  const uint64_t target = stream.submitted;
  advance(r, lock, stream, [&] { return stream.finished >= target; });
}
void drain_all(Runtime& r, Lock& lock, bool non_blocking_too) {
  const auto streams = r.streams;  // others may destroy them meanwhile
  for (const auto& [name, stream] : streams) {
    if (stream->blocking || non_blocking_too) drain(r, lock, *stream);
  }
  drain(r, lock, r.legacy);
}

// Calls that a capture under way forbids.
cudaError_t unsafe(Runtime& r) {
  for (const auto& capture : r.captures) {
    if (capture->mode == cudaStreamCaptureModeGlobal ||
        (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread == std::this_thread::get_id())) {
      capture->invalid = true;
      return cudaErrorStreamCaptureUnsupported;
    }
  }
  return cudaSuccess;
}
cudaError_t legacy_stream_allowed(Runtime& r) {
  for (const auto& capture : r.captures) {
    if (capture->origin->blocking) {
      capture->invalid = true;
      return cudaErrorStreamCaptureImplicit;
    }
  }
  return cudaSuccess;
}

cudaError_t submit(Runtime& r, Lock& lock, cudaStream_t stream, Work work) {
  if (!stream) {
    if (const cudaError_t e = legacy_stream_allowed(r)) return e;
    drain_all(r, lock, false);
    r.legacy.queue.push_back({std::move(work), nullptr, nullptr});
    r.legacy.submitted++;
    drain(r, lock, r.legacy);
    return r.dead;
  }
  if (!r.streams.count(stream)) return cudaErrorInvalidResourceHandle;
  if (stream->capture) {
    Capture& capture = *stream->capture;
    if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
    capture.nodes.push_back({std::move(work), {stream->frontier.begin(), stream->frontier.end()}});
    stream->frontier = {capture.nodes.size() - 1};
    return cudaSuccess;
  }
  stream->queue.push_back({std::move(work), nullptr, nullptr});
  stream->submitted++;
  return cudaSuccess;
}

void run_nodes(const std::vector<Node>& nodes, uint64_t random) {
  std::vector<size_t> missing, ready;
  std::vector<std::vector<size_t>> followers(nodes.size());
  for (size_t i = 0; i < nodes.size(); i++) {
    missing.push_back(nodes[i].after.size());
    for (size_t before : nodes[i].after) followers[before].push_back(i);
    if (missing[i] == 0) ready.push_back(i);
  }
  while (!ready.empty()) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    std::swap(ready[(random >> 33) % ready.size()], ready.back());
    const size_t node = ready.back();
    ready.pop_back();
    nodes[node].work();
    for (size_t follower : followers[node]) {
      if (--missing[follower] == 0) ready.push_back(follower);
    }
  }
}

void run_kernel(const Launch& launch) {
  Runtime& r = runtime();
  {
    Lock lock(r.mutex);
    if (r.dead != cudaSuccess) return;
    if (kills(r.settings.error) && fault(r, Fault::launch)) return;
  }
  run(launch);
  Lock lock(r.mutex);
  check_all_guards(r, std::string("after ") + launch.what);
}

cudaError_t copy(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                 cudaMemcpyKind kind, cudaStream_t stream, bool wait) {
  DESAP_ENTER();
  if (wait) {
    if (const cudaError_t e = unsafe(r)) return say(e);
  }
  if (width == 0 || height == 0) return cudaSuccess;
  if (to_pitch < width || from_pitch < width) return say(cudaErrorInvalidValue);
  const Place target = place_of(r, to, to_pitch * (height - 1) + width);
  const Place source = place_of(r, from, from_pitch * (height - 1) + width);
  if (target == Place::invalid || source == Place::invalid) return say(cudaErrorInvalidValue);
  // Pinned memory is addressable from the device, too.
  const bool to_host = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyHostToHost;
  const bool from_host = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyHostToHost;
  if (kind != cudaMemcpyDefault && (target == (to_host ? Place::device : Place::pageable) ||
                                    source == (from_host ? Place::device : Place::pageable))) {
    return say(cudaErrorInvalidValue);
  }
  const auto rows = [=](void* a, size_t a_pitch, const void* b, size_t b_pitch) {
    for (size_t i = 0; i < height; i++) {
      std::memcpy(static_cast<char*>(a) + i * a_pitch, static_cast<const char*>(b) + i * b_pitch, width);
    }
  };
  const bool captured = stream && r.streams.count(stream) && stream->capture;
  Work work = [=] { rows(to, to_pitch, from, from_pitch); };
  if (source == Place::pageable && !captured) {  // the caller may change it when the call has returned
    auto staged = std::make_shared<std::vector<char>>(width * height);
    rows(staged->data(), width, from, from_pitch);
    work = [=] { rows(to, to_pitch, staged->data(), width); };
  }
  if (const cudaError_t e = submit(r, lock, stream, std::move(work))) return say(e);
  if (stream && !captured && (wait || target == Place::pageable)) drain(r, lock, *stream);
  return say(r.dead);
}

cudaError_t set(void* at, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream) {
  DESAP_ENTER();
  if (width == 0 || height == 0) return cudaSuccess;
  const Place target = place_of(r, at, pitch * (height - 1) + width);
  if (pitch < width || target == Place::invalid || target == Place::pageable) return say(cudaErrorInvalidValue);
  return say(submit(r, lock, stream, [=] {
    for (size_t i = 0; i < height; i++) std::memset(static_cast<char*>(at) + i * pitch, value, width);
  }));
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------- control

Settings settings() {
  Lock lock(runtime().mutex);
  return runtime().settings;
}
void configure(const Settings& settings) {
  Lock lock(runtime().mutex);
  start_anew(runtime(), settings);
}

bool failed() {
  Runtime& r = runtime();
  Lock lock(r.mutex);
  return r.settings.fault != Fault::none && r.until_fault == 0;
}

Live live() {
  Runtime& r = runtime();
  Lock lock(r.mutex);
  int64_t bytes = 0;
  for (const auto& [address, allocation] : r.allocations) bytes += static_cast<int64_t>(allocation.bytes);
  return {static_cast<int64_t>(r.allocations.size()), bytes, static_cast<int64_t>(r.streams.size()), r.events, r.graphs,
          r.executables};
}

void collect_failures(bool collecting) {
  Lock lock(runtime().mutex);
  runtime().collecting = collecting;
}
std::vector<std::string> take_failures() {
  Lock lock(runtime().mutex);
  return std::exchange(runtime().failures, {});
}
void report(const std::string& message) {
  Lock lock(runtime().mutex);
  collect_or_abort(runtime(), message);
}

bool readable(const void* from, size_t bytes) {
  Runtime& r = runtime();
  Lock lock(r.mutex);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(from), end = begin + bytes;
  const auto next = r.allocations.upper_bound(begin + guard_bytes);
  if (next == r.allocations.begin()) return true;
  const auto& [address, allocation] = *std::prev(next);
  const uintptr_t last = address + allocation.bytes;
  return end <= address - guard_bytes || begin >= last + guard_bytes || (begin >= address && end <= last);
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* function, const char* what,
                   std::function<void()> thread) {
  DESAP_ENTER();
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return say(cudaErrorInvalidConfiguration);
  }
  const auto limit = r.shared_limits.find(function);
  if (config.dynamicSmemBytes > (limit == r.shared_limits.end() ? shared_default : limit->second)) {
    return say(cudaErrorInvalidValue);
  }
  bool overlap = false;
  for (unsigned i = 0; i < config.numAttrs; i++) {
    overlap = overlap || (config.attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization &&
                          config.attrs[i].val.programmaticStreamSerializationAllowed);
  }
  if (overlap && r.settings.major < 9) return say(cudaErrorNotSupported);
  const bool captured = config.stream && r.streams.count(config.stream) && config.stream->capture;
  if (!captured && !kills(r.settings.error)) {
    if (const cudaError_t e = fault(r, Fault::launch)) return say(e);
  }
  const char* const parameters = std::strstr(what, "Parameters = ");  // the nearest to the kernel's name that there is
  const Launch launch{grid, block, config.dynamicSmemBytes, overlap, parameters ? parameters : what, std::move(thread)};
  return say(submit(r, lock, config.stream, [launch] { run_kernel(launch); }));
}

}  // namespace desap::simt

using namespace desap::simt;

// ------------------------------------------------------------------------------------------------------------ device

cudaError_t cudaDriverGetVersion(int* version) {
  Runtime& r = runtime();
  Lock lock(r.mutex);
  read_control(r);
  *version = r.settings.driver;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = runtime_version;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  DESAP_ENTER();
  *count = r.settings.devices;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  DESAP_ENTER();
  if (device < 0 || device >= r.settings.devices) return say(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated device %d", device);
  properties->totalGlobalMem = r.settings.memory;
  properties->sharedMemPerBlock = shared_default;
  properties->sharedMemPerBlockOptin = shared_largest;
  properties->sharedMemPerMultiprocessor = shared_largest + 1024;
  properties->major = r.settings.major;
  properties->minor = r.settings.minor;
  properties->multiProcessorCount = 4;
  properties->maxThreadsPerBlock = 1024;
  properties->warpSize = 32;
  properties->l2CacheSize = 1 << 20;
  properties->canMapHostMemory = properties->unifiedAddressing = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (const cudaError_t e = cudaGetDeviceProperties(&p, device)) return e;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(p.sharedMemPerBlock); break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrIntegrated: *value = p.integrated; break;
    case cudaDevAttrCanMapHostMemory: *value = p.canMapHostMemory; break;
    case cudaDevAttrUnifiedAddressing: *value = p.unifiedAddressing; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(p.sharedMemPerBlockOptin); break;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  DESAP_ENTER();
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  DESAP_ENTER();
  if (device < 0 || device >= r.settings.devices) return say(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  DESAP_ENTER();
  if (const cudaError_t e = unsafe(r)) return say(e);
  drain_all(r, lock, true);
  return say(r.dead);
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() {
  Runtime& r = runtime();
  Lock lock(r.mutex);
  return r.dead != cudaSuccess ? r.dead : last_error;
}

const char* cudaGetErrorName(cudaError_t error) {
#define DESAP_NAME(name) case name: return #name;
  switch (error) {
    DESAP_NAME(cudaSuccess)
    DESAP_NAME(cudaErrorInvalidValue)
    DESAP_NAME(cudaErrorMemoryAllocation)
    DESAP_NAME(cudaErrorInitializationError)
    DESAP_NAME(cudaErrorCudartUnloading)
    DESAP_NAME(cudaErrorInvalidConfiguration)
    DESAP_NAME(cudaErrorInvalidMemcpyDirection)
    DESAP_NAME(cudaErrorInsufficientDriver)
    DESAP_NAME(cudaErrorDevicesUnavailable)
    DESAP_NAME(cudaErrorInvalidDeviceFunction)
    DESAP_NAME(cudaErrorNoDevice)
    DESAP_NAME(cudaErrorInvalidDevice)
    DESAP_NAME(cudaErrorDeviceUninitialized)
    DESAP_NAME(cudaErrorNoKernelImageForDevice)
    DESAP_NAME(cudaErrorECCUncorrectable)
    DESAP_NAME(cudaErrorNvlinkUncorrectable)
    DESAP_NAME(cudaErrorContained)
    DESAP_NAME(cudaErrorInvalidResourceHandle)
    DESAP_NAME(cudaErrorIllegalState)
    DESAP_NAME(cudaErrorNotReady)
    DESAP_NAME(cudaErrorIllegalAddress)
    DESAP_NAME(cudaErrorLaunchOutOfResources)
    DESAP_NAME(cudaErrorLaunchTimeout)
    DESAP_NAME(cudaErrorContextIsDestroyed)
    DESAP_NAME(cudaErrorAssert)
    DESAP_NAME(cudaErrorHardwareStackError)
    DESAP_NAME(cudaErrorIllegalInstruction)
    DESAP_NAME(cudaErrorMisalignedAddress)
    DESAP_NAME(cudaErrorInvalidAddressSpace)
    DESAP_NAME(cudaErrorInvalidPc)
    DESAP_NAME(cudaErrorLaunchFailure)
    DESAP_NAME(cudaErrorTensorMemoryLeak)
    DESAP_NAME(cudaErrorNotPermitted)
    DESAP_NAME(cudaErrorNotSupported)
    DESAP_NAME(cudaErrorSystemNotReady)
    DESAP_NAME(cudaErrorMpsClientTerminated)
    DESAP_NAME(cudaErrorStreamCaptureUnsupported)
    DESAP_NAME(cudaErrorStreamCaptureInvalidated)
    DESAP_NAME(cudaErrorStreamCaptureMerge)
    DESAP_NAME(cudaErrorStreamCaptureUnmatched)
    DESAP_NAME(cudaErrorStreamCaptureUnjoined)
    DESAP_NAME(cudaErrorStreamCaptureIsolation)
    DESAP_NAME(cudaErrorStreamCaptureImplicit)
    DESAP_NAME(cudaErrorStreamCaptureWrongThread)
    DESAP_NAME(cudaErrorExternalDevice)
    DESAP_NAME(cudaErrorUnknown)
  }
#undef DESAP_NAME
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

// ------------------------------------------------------------------------------------------------------------ memory

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  DESAP_ENTER();
  if (const cudaError_t e = unsafe(r)) return say(e);
  return say(allocate(r, pointer, bytes, true));
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  DESAP_ENTER();
  if (const cudaError_t e = unsafe(r)) return say(e);
  return say(allocate(r, pointer, bytes, false));
}

// Frees even when the device is dead, so that `live` tells who forgot to ask.
static cudaError_t free_memory(void* pointer, bool device) {
  if (!pointer) return cudaSuccess;
  Runtime& r = runtime();
  Lock lock(r.mutex);
  read_control(r);
  if (const cudaError_t e = unsafe(r)) return say(e);
  drain_all(r, lock, true);
  const cudaError_t result = release(r, pointer, device);
  return say(r.dead != cudaSuccess ? r.dead : result);
}
cudaError_t cudaFree(void* pointer) { return free_memory(pointer, true); }
cudaError_t cudaFreeHost(void* pointer) { return free_memory(pointer, false); }

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  DESAP_ENTER();
  const Place place = place_of(r, host, 0);
  if (place != Place::pinned) return say(cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  DESAP_ENTER();
  void* const p = const_cast<void*>(pointer);
  switch (place_of(r, pointer, 0)) {
    case Place::device: *attributes = {cudaMemoryTypeDevice, 0, p, nullptr}; break;
    case Place::pinned: *attributes = {cudaMemoryTypeHost, 0, p, p}; break;
    default: *attributes = {cudaMemoryTypeUnregistered, -1, nullptr, p}; break;
  }
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  DESAP_ENTER();
  *total = r.settings.memory;
  *free = r.settings.memory - std::min(r.settings.memory, r.device_bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return copy(to, bytes, from, bytes, bytes, 1, kind, nullptr, true);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(to, bytes, from, bytes, bytes, 1, kind, stream, false);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(to, to_pitch, from, from_pitch, width, height, kind, stream, false);
}
cudaError_t cudaMemset(void* at, int value, size_t bytes) { return set(at, bytes, value, bytes, 1, nullptr); }
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
  return set(at, bytes, value, bytes, 1, stream);
}
cudaError_t cudaMemset2DAsync(void* at, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream) {
  return set(at, pitch, value, width, height, stream);
}

// ------------------------------------------------------------------------------------------------ streams and events

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  DESAP_ENTER();
  const auto created = std::make_shared<CUstream_st>();
  created->blocking = !(flags & cudaStreamNonBlocking);
  *stream = created.get();
  r.streams[*stream] = created;
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Runtime& r = runtime();
  Lock lock(r.mutex);
  if (!r.streams.count(stream)) return say(cudaErrorInvalidResourceHandle);
  drain(r, lock, *stream);
  if (stream->capture) {
    stream->capture->invalid = true;
    r.captures.erase(stream->capture);
    for (CUstream_st* s : stream->capture->streams) {
      if (s != stream) s->capture = nullptr;
    }
  }
  r.streams.erase(stream);
  return say(r.dead);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  DESAP_ENTER();
  if (!stream) {
    if (const cudaError_t e = legacy_stream_allowed(r)) return say(e);
    drain_all(r, lock, false);
    return say(r.dead);
  }
  if (!r.streams.count(stream)) return say(cudaErrorInvalidResourceHandle);
  if (stream->capture) {
    stream->capture->invalid = true;
    return say(cudaErrorStreamCaptureUnsupported);
  }
  drain(r, lock, *stream);
  return say(r.dead);
}

// Each query lets the stream do one operation: who polls gets there.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (!stream) return cudaStreamSynchronize(stream);
  DESAP_ENTER();
  if (!r.streams.count(stream)) return say(cudaErrorInvalidResourceHandle);
  if (stream->capture) {
    stream->capture->invalid = true;
    return say(cudaErrorStreamCaptureUnsupported);
  }
  if (stream->queue.empty()) return say(r.dead);
  if (!stream->running) run_first(r, lock, *stream);
  return r.dead != cudaSuccess ? say(r.dead) : cudaErrorNotReady;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  DESAP_ENTER();
  *event = new CUevent_st;
  (*event)->timing = !(flags & cudaEventDisableTiming);
  r.events++;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Runtime& r = runtime();
  Lock lock(r.mutex);
  if (!event) return say(cudaErrorInvalidResourceHandle);
  delete event;
  r.events--;
  return say(r.dead);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  DESAP_ENTER();
  if (!event || (stream && !r.streams.count(stream))) return say(cudaErrorInvalidResourceHandle);
  if (stream && stream->capture) {
    if (stream->capture->invalid) return say(cudaErrorStreamCaptureInvalidated);
    event->capture = stream->capture;
    event->frontier = stream->frontier;
    event->mark = nullptr;
    return cudaSuccess;
  }
  event->capture = nullptr;
  event->mark = std::make_shared<Mark>();
  CUstream_st& s = stream ? *stream : r.legacy;
  if (!stream) {
    if (const cudaError_t e = legacy_stream_allowed(r)) return say(e);
    drain_all(r, lock, false);
  }
  event->mark->stream = &s;
  s.queue.push_back({nullptr, nullptr, event->mark});
  s.submitted++;
  if (!stream) drain(r, lock, s);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  DESAP_ENTER();
  if (!event || (stream && !r.streams.count(stream))) return say(cudaErrorInvalidResourceHandle);
  if (event->capture) {
    if (event->capture->invalid || !r.captures.count(event->capture)) return say(cudaErrorStreamCaptureInvalidated);
    if (!stream) return say(cudaErrorStreamCaptureImplicit);
    if (stream->capture && stream->capture != event->capture) {
      stream->capture->invalid = event->capture->invalid = true;
      return say(cudaErrorStreamCaptureMerge);
    }
    if (!stream->capture) {
      stream->capture = event->capture;
      stream->frontier.clear();
      stream->capture->streams.push_back(stream);
    }
    stream->frontier.insert(event->frontier.begin(), event->frontier.end());
    return cudaSuccess;
  }
  if (stream && stream->capture) {  // work outside the capture
    stream->capture->invalid = true;
    return say(cudaErrorStreamCaptureIsolation);
  }
  if (!event->mark) return cudaSuccess;
  if (!stream) {
    finish(r, lock, *event->mark);
    return say(r.dead);
  }
  stream->queue.push_back({nullptr, event->mark, nullptr});
  stream->submitted++;
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  DESAP_ENTER();
  if (!event) return say(cudaErrorInvalidResourceHandle);
  if (event->capture) return say(cudaErrorStreamCaptureUnsupported);
  const auto mark = event->mark;
  if (mark) finish(r, lock, *mark);
  return say(r.dead);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  DESAP_ENTER();
  if (!event) return say(cudaErrorInvalidResourceHandle);
  if (event->capture) return say(cudaErrorStreamCaptureUnsupported);
  const auto mark = event->mark;
  if (!mark || mark->done) return say(r.dead);
  if (!mark->stream->running) run_first(r, lock, *mark->stream);
  return r.dead != cudaSuccess ? say(r.dead) : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  DESAP_ENTER();
  if (!start || !end) return say(cudaErrorInvalidResourceHandle);
  if (!start->timing || !end->timing || !start->mark || !end->mark) return say(cudaErrorInvalidResourceHandle);
  if (!start->mark->done || !end->mark->done) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(end->mark->time - start->mark->time).count();
  return cudaSuccess;
}

// ------------------------------------------------------------------------------------------------------------ graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  DESAP_ENTER();
  if (!stream) return say(cudaErrorStreamCaptureUnsupported);
  if (!r.streams.count(stream)) return say(cudaErrorInvalidResourceHandle);
  if (stream->capture) return say(cudaErrorIllegalState);
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  stream->capture->mode = mode;
  stream->capture->thread = std::this_thread::get_id();
  stream->capture->streams = {stream};
  stream->frontier.clear();
  r.captures.insert(stream->capture);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  DESAP_ENTER();
  if (!stream || !r.streams.count(stream)) return say(cudaErrorInvalidResourceHandle);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (!capture) return say(cudaErrorIllegalState);
  if (capture->origin != stream) return say(cudaErrorStreamCaptureUnmatched);
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id()) {
    return say(cudaErrorStreamCaptureWrongThread);
  }
  // What the origin stream has behind it; other streams must not have gone further.
  std::vector<bool> joined(capture->nodes.size());
  for (size_t i : stream->frontier) joined[i] = true;
  for (size_t i = joined.size(); i-- > 0;) {
    if (joined[i]) for (size_t before : capture->nodes[i].after) joined[before] = true;
  }
  const bool all_joined = std::all_of(joined.begin(), joined.end(), [](bool b) { return b; });
  for (CUstream_st* s : capture->streams) s->capture = nullptr;
  r.captures.erase(capture);
  if (capture->invalid) return say(cudaErrorStreamCaptureInvalidated);
  if (!all_joined) return say(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{std::make_shared<const std::vector<Node>>(std::move(capture->nodes))};
  r.graphs++;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  DESAP_ENTER();
  *status = !stream || !stream->capture        ? cudaStreamCaptureStatusNone
            : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  DESAP_ENTER();
  *exec = new CUgraphExec_st{graph->nodes};
  r.executables++;
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  DESAP_ENTER();
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  DESAP_ENTER();
  if (!exec) return say(cudaErrorInvalidValue);
  if (stream && r.streams.count(stream) && stream->capture) return say(cudaErrorNotSupported);
  if (!kills(r.settings.error)) {
    if (const cudaError_t e = fault(r, Fault::launch)) return say(e);
  }
  const uint64_t random = r.settings.seed * 0x9e3779b97f4a7c15ull + r.random++;
  return say(submit(r, lock, stream, [nodes = exec->nodes, random] { run_nodes(*nodes, random); }));
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  Runtime& r = runtime();
  Lock lock(r.mutex);
  if (!graph) return say(cudaErrorInvalidValue);
  delete graph;
  r.graphs--;
  return say(r.dead);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  Runtime& r = runtime();
  Lock lock(r.mutex);
  if (!exec) return say(cudaErrorInvalidValue);
  delete exec;
  r.executables--;
  return say(r.dead);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  DESAP_ENTER();
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > shared_largest) return say(cudaErrorInvalidValue);
  r.shared_limits[function] = static_cast<size_t>(value);
  return cudaSuccess;
}
