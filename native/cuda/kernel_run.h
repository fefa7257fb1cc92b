// One run of a few kernels outside of any graph: memory for it, inputs up, results down, and the rows at fault.
#pragma once

#include <climits>
#include <new>
#include <vector>

#include "kernels.cuh"
#include "lane.h"

namespace desap::cuda {

// Its lane, its device memory, and the way there and back. After an error all that follows does nothing, and `wait` says
// what it was.
class KernelRun {
 public:
  explicit KernelRun(Context& context) : engine_(*context.engine), lane_(engine_) {}
  ~KernelRun() {
    if (pending_) wait();
  }

  Status open() {
    DESAP_TRY(lane_.take());
    lane_->queue.follows_kernel = false;
    return {};
  }
  Queue& queue() { return lane_->queue; }
  Precision precision() const { return engine_.precision; }
  Lane& lane() { return *lane_; }

  template <class T>
  T* array(int64_t count) {
    if (queue().failed()) return nullptr;
    blocks_.emplace_back();
    queue().note(blocks_.back().allocate(lane_->card, count * static_cast<int64_t>(sizeof(T))));
    return reinterpret_cast<T*>(blocks_.back().data());
  }
  Matrix matrix(int64_t rows, int64_t cols) { return {array<float>(rows * cols), rows, cols, cols}; }
  Operand operand(int64_t rows, int64_t ld) {
    uint16_t* hi = array<uint16_t>(rows * ld);
    return {hi, precision() == Precision::fp32 ? array<uint16_t>(rows * ld) : nullptr, ld};
  }

  // To device memory of the caller's.
  template <class T>
  void send(const T* from, int64_t count, T* to) {
    copy(to, from, count * static_cast<int64_t>(sizeof(T)), cudaMemcpyHostToDevice);
  }
  void send(ConstMatrix from, Matrix to) { copy_rows(to, from, cudaMemcpyHostToDevice); }
  // To device memory of this run's.
  template <class T>
  T* upload(const T* from, int64_t count) {
    T* to = array<T>(count);
    send(from, count, to);
    return to;
  }
  Matrix upload(ConstMatrix from) {
    const Matrix to = matrix(from.rows, from.cols);
    send(from, to);
    return to;
  }
  template <class T>
  void download(const T* from, int64_t count, T* to) {
    copy(to, from, count * static_cast<int64_t>(sizeof(T)), cudaMemcpyDeviceToHost);
  }
  void download(ConstMatrix from, Matrix to) { copy_rows(to, from, cudaMemcpyDeviceToHost); }

  Status wait() {
    pending_ = false;
    return lane_->finish();
  }
  // Fetches one number, after all that was enqueued.
  Status fetch(const int* from, int* to) {
    download(from, 1, to);
    return wait();
  }
  // The cell in which a kernel reports the first place at fault.
  int* fault() {
    const int none = INT_MAX;
    return upload(&none, 1);
  }
  Status check(const int* fault, const char* what, Code code = Code::not_finite) {
    int where = INT_MAX;
    DESAP_TRY(fetch(fault, &where));
    if (where == INT_MAX) return {};
    return {code, what, where};
  }

 private:
  void copy(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind) {
    pending_ = true;
    if (!queue().failed() && bytes > 0)
      queue().note(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, queue().stream));
    queue().follows_kernel = false;
  }
  void copy_rows(Matrix to, ConstMatrix from, cudaMemcpyKind kind) {
    pending_ = true;
    const auto bytes = [](int64_t elements) { return static_cast<size_t>(elements) * sizeof(float); };
    if (!queue().failed() && from.rows > 0 && from.cols > 0) {
      queue().note(cudaMemcpy2DAsync(to.data, bytes(to.ld), from.data, bytes(from.ld), bytes(from.cols),
                                     static_cast<size_t>(from.rows), kind, queue().stream));
    }
    queue().follows_kernel = false;
  }

  Engine& engine_;
  LaneLock lane_;
  std::vector<DeviceBuffer> blocks_;
  bool pending_ = false;
};

// Runs `body` with an open run.
template <class Body>
Status with_run(Context& context, const char* what, const Body& body) try {
  KernelRun run(context);
  DESAP_TRY(run.open());
  return body(run);
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, what};
}

// All rows as one image, which is what the kernels of kernels.cuh take.
struct OneImage {
  OneImage(KernelRun& run, int64_t rows, bool class_token, int64_t words, int64_t keep, int64_t task_keep) {
    const int n = static_cast<int>(rows), patches = n - (class_token ? 1 : 0), k = static_cast<int>(keep);
    const int t = static_cast<int>(words);
    const Image image{0, n, 0, patches, 0, t, t, k, static_cast<int>(task_keep), 0, nullptr};
    record = run.upload(&image, 1);
    extent = {1, n, patches, k, n, patches, t, k};
  }
  const Image* record;
  Extent extent;
};

}  // namespace desap::cuda
