// One run of a few kernels outside of any graph: memory for it, inputs up, results down, and the rows at fault.
#pragma once

#include <climits>
#include <new>
#include <vector>

#include "kernels.cuh"
#include "stream.h"

namespace desap::cuda {

// Its stream, its device memory, and the way there and back. After an error all that follows does nothing, and `wait` says
// what it was.
class KernelRun {
 public:
  explicit KernelRun(Context& context) : engine_(*context.engine), stream_(engine_) {}
  ~KernelRun() {
    if (pending_) wait();
  }

  Status open() {
    DESAP_TRY(stream_.take());
    stream_->queue.follows_kernel = false;
    return {};
  }
  Queue& queue() { return stream_->queue; }
  Precision precision() const { return engine_.precision; }
  Stream& stream() { return *stream_; }

  template <class T>
  T* array(int64_t count) {
    if (queue().failed()) return nullptr;
    blocks_.emplace_back();
    queue().note(blocks_.back().allocate(stream_->gpu, count * static_cast<int64_t>(sizeof(T))));
    return reinterpret_cast<T*>(blocks_.back().data());
  }
  Matrix matrix(int64_t rows, int64_t cols) { return {array<float>(rows * cols), rows, cols, cols}; }
  // While it lives, arrays are its own: they go back when it ends. By then the run has waited for what works on them.
  class Scope {
   public:
    explicit Scope(KernelRun& run) : run_(run), kept_(run.blocks_.size()) {}
    ~Scope() { run_.blocks_.resize(kept_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    KernelRun& run_;
    const size_t kept_;
  };
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
    return stream_->finish();
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
  StreamLock stream_;
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
  OneImage(KernelRun& run, int64_t rows, bool class_token, int64_t text_tokens, int64_t keep, int64_t task_keep) {
    Image image{};
    image.rows = static_cast<int>(rows);
    image.patches = image.rows - (class_token ? 1 : 0);
    image.text_tokens = static_cast<int>(text_tokens);
    image.end_of_text = image.text_tokens;
    image.keep = static_cast<int>(keep);
    image.task_keep = static_cast<int>(task_keep);
    record = run.upload(&image, 1);
    extent.images = 1;
    extent.rows = extent.max_rows = image.rows;
    extent.patches = extent.max_patches = image.patches;
    extent.kept = extent.max_keep = image.keep;
    extent.max_text_tokens = image.text_tokens;
  }
  const Image* record;
  Extent extent{};
};

// A matrix in device memory as an operand, with the power of two that scales it: the products of the single kernels take
// operands of any magnitude, and the host undoes the scale in the one that the kernel applies anyway.
struct Scaled {
  Operand operand;
  int* exponent;
};
Scaled scaled(KernelRun&, ConstMatrix x, int heads, int padded_size);

// q and k, turned by the tables where there are some, and the scale of their scores: [heads].
struct ScoreOperands {
  Scaled q, k;
  const float* scale;
};
Status score_operands(KernelRun&, ConstMatrix q, ConstMatrix k, int64_t heads, int padded_size, Rotary, ScoreOperands*);

// The smallest e >= 0 for which no element of a rotary table of `count` rows exceeds 1 in magnitude once it is divided by 2^e; 0 where
// there is no table. A rotation has 0, so this is for tables that scale as well.
int rotary_exponent(Rotary, int64_t count);
// Sends a table to device memory, each element divided by 2^exponent.
void send_rotary(KernelRun&, Rotary, int64_t count, int exponent, float* cos, float* sin);

// y = x W^T + b, all on the GPU; waits for it. In linear.cu.
Status multiply(KernelRun&, ConstMatrix x, const Linear&, Matrix y);
// The rows of W.
int64_t width_of(const Linear&);

// `pool` with the map on the host. In pool.cu.
void pool(KernelRun&, const float* scores, const int32_t* unit, int64_t size, int64_t units, float* means);

// The padded size of heads of width / heads columns; -1: too large.
int padded_head_size_of(int64_t width, int64_t heads);

}  // namespace desap::cuda
