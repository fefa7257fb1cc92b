// Each kernel alone, for the host: inputs up, the kernels of kernels.cuh, results down. The matrix products here take
// operands of any magnitude: they are scaled by a power of two of their own, which the host undoes in the scale that the
// kernel applies anyway.
#include "../kernels.h"

#include <climits>
#include <cmath>
#include <new>
#include <vector>

#include "kernels.cuh"
#include "weights.h"

namespace desap {
namespace {

using cuda::Queue;

// One kernel's call: its lane, its device memory, and the way there and back. After an error all that follows does nothing,
// and `wait` says what it was.
class Job {
 public:
  explicit Job(Context& context) : engine_(*context.engine), lane_(engine_) {}
  ~Job() {
    if (pending_) wait();
  }

  Status open() {
    DESAP_TRY(lane_.take());
    lane_->queue.follows_kernel = false;
    return {};
  }
  Queue& queue() { return lane_->queue; }
  Precision precision() const { return engine_.precision; }
  cuda::Lane& lane() { return *lane_; }

  template <class T>
  T* array(int64_t count) {
    if (queue().failed()) return nullptr;
    blocks_.emplace_back();
    queue().note(blocks_.back().allocate(lane_->card, count * static_cast<int64_t>(sizeof(T))));
    return reinterpret_cast<T*>(blocks_.back().data());
  }
  Matrix matrix(int64_t rows, int64_t cols) { return {array<float>(rows * cols), rows, cols, cols}; }
  cuda::Operand operand(int64_t rows, int64_t ld) {
    uint16_t* hi = array<uint16_t>(rows * ld);
    return {hi, precision() == Precision::strict ? array<uint16_t>(rows * ld) : nullptr, ld};
  }

  template <class T>
  T* upload(const T* from, int64_t count) {
    T* to = array<T>(count);
    copy(to, from, count * static_cast<int64_t>(sizeof(T)), cudaMemcpyHostToDevice);
    return to;
  }
  Matrix upload(ConstMatrix from) {
    const Matrix to = matrix(from.rows, from.cols);
    copy_rows(to, from, cudaMemcpyHostToDevice);
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

  cuda::Engine& engine_;
  cuda::LaneLock lane_;
  std::vector<cuda::DeviceBuffer> blocks_;
  bool pending_ = false;
};

// Runs `body` with an open job.
template <class Body>
Status with_job(Context& context, const char* what, const Body& body) try {
  Job job(context);
  DESAP_TRY(job.open());
  return body(job);
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, what};
}

// A matrix in device memory as an operand, with the power of two that scales it.
struct Scaled {
  cuda::Operand operand;
  int* exponent;
};

Scaled scaled(Job& job, ConstMatrix x, int heads, int padded_size) {
  const Scaled result{job.operand(x.rows, cuda::padded_width(int64_t{heads} * padded_size)), job.array<int>(1)};
  cuda::magnitude(job.queue(), x, result.exponent);
  cuda::to_operand(job.queue(), job.precision(), x, heads, padded_size, result.exponent, result.operand);
  return result;
}

// The scores' scale of each head: log2 e / sqrt(dh), without the operands' own scales.
Status score_scale(Job& job, const Scaled& q, const Scaled& k, int64_t heads, int64_t size, const float** scale) {
  int left = 0, right = 0;
  job.download(q.exponent, 1, &left);
  DESAP_TRY(job.fetch(k.exponent, &right));
  constexpr double log2_e = 1.4426950408889634;
  const double value = std::ldexp(log2_e / std::sqrt(static_cast<double>(size)), -(left + right));
  *scale = job.upload(std::vector<float>(static_cast<size_t>(heads), static_cast<float>(value)).data(), heads);
  return {};
}

// All rows as one image, which is what the kernels of kernels.cuh take.
struct OneImage {
  OneImage(Job& job, int64_t rows, bool class_token, int64_t words, int64_t keep, int64_t task_keep) {
    const int n = static_cast<int>(rows), patches = n - (class_token ? 1 : 0), k = static_cast<int>(keep);
    const int t = static_cast<int>(words);
    const cuda::Image image{0, n, 0, patches, 0, t, t, k, static_cast<int>(task_keep), 0, nullptr};
    record = job.upload(&image, 1);
    extent = {1, n, patches, k, n, patches, t, k};
  }
  const cuda::Image* record;
  cuda::Extent extent;
};

int head_size_of(int64_t width, int64_t heads) {
  const int64_t size = width / heads;
  return size > cuda::largest_head_size ? -1 : cuda::padded_head_size(static_cast<int>(size));
}

}  // namespace

// ---------------------------------------------------------------------------------------------------- element by element

Status convert_half(Context& context, const uint16_t* x, int64_t size, float* y) {
  if (size == 0) return {};
  return with_job(context, "convert_half", [&](Job& job) {
    float* out = job.array<float>(size);
    cuda::convert_half(job.queue(), job.upload(x, size), size, out);
    job.download(out, size, y);
    return job.wait();
  });
}

Status convert_to_half(Context& context, const float* x, int64_t size, uint16_t* y) {
  if (size == 0) return {};
  return with_job(context, "convert_to_half", [&](Job& job) {
    uint16_t* out = job.array<uint16_t>(size);
    cuda::convert_to_half(job.queue(), job.upload(x, size), size, out);
    job.download(out, size, y);
    return job.wait();
  });
}

Status layer_norm(Context& context, ConstMatrix x, const float* weight, const float* bias, float epsilon, Matrix y) {
  return with_job(context, "layer_norm", [&](Job& job) -> Status {
    const Matrix rows = job.upload(x);
    const float* gamma = job.upload(weight, x.cols);
    const float* beta = job.upload(bias, x.cols);
    int* fault = job.fault();
    cuda::layer_norm(job.queue(), rows, gamma, beta, epsilon, rows, fault);
    DESAP_TRY(job.check(fault, "x"));
    job.download(rows, y);
    return job.wait();
  });
}

Status unit_rows(Context& context, ConstMatrix x, Matrix y) {
  return with_job(context, "unit_rows", [&](Job& job) -> Status {
    const Matrix rows = job.upload(x);
    int* fault = job.fault();
    cuda::unit_rows(job.queue(), rows, rows, fault);
    DESAP_TRY(job.check(fault, "x"));
    job.download(rows, y);
    return job.wait();
  });
}

// ----------------------------------------------------------------------------------------------------------- linear

struct Linear {
  std::shared_ptr<cuda::Engine> engine;  // the card outlives what is on it
  cuda::PackedLayer layer;
  std::vector<float> scale;
};

Status linear_pack(Context& context, ConstMatrix weight, const float* bias, Linear** linear) try {
  cuda::HostLayer rows(weight.rows, weight.cols);
  std::vector<double> row(static_cast<size_t>(weight.cols));
  for (int64_t i = 0; i < weight.rows; i++) {
    row.assign(weight.row(i), weight.row(i) + weight.cols);
    rows.set(i, row.data(), bias ? static_cast<double>(bias[i]) : 0, 0);
  }
  auto packed = std::make_unique<Linear>();
  packed->engine = context.engine;
  packed->scale = rows.scale;
  cuda::LaneLock lane(*context.engine);
  DESAP_TRY(lane.take());
  DESAP_TRY(packed->layer.pack(*lane, context.engine->precision, rows, bias != nullptr));
  *linear = packed.release();
  return {};
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "weight"};
}

void linear_free(Linear* linear) { delete linear; }

namespace {

// y = x W^T + b, all on the card.
Status multiply(Job& job, ConstMatrix x, const Linear& linear, Matrix y) {
  const Scaled operand = scaled(job, x, 1, static_cast<int>(cuda::padded_width(x.cols)));
  int exponent = 0;
  DESAP_TRY(job.fetch(operand.exponent, &exponent));
  std::vector<float> scale;
  for (float s : linear.scale) scale.push_back(static_cast<float>(std::ldexp(static_cast<double>(s), -exponent)));
  cuda::Weights weights = linear.layer.all();
  weights.scale = job.upload(scale.data(), weights.out);
  cuda::linear(job.queue(), job.precision(), operand.operand, x.rows, weights, y, nullptr);
  return job.wait();
}

}  // namespace

Status linear(Context& context, ConstMatrix x, const Linear& weight, Matrix y) {
  return with_job(context, "linear", [&](Job& job) -> Status {
    const Matrix in = job.upload(x), out = job.matrix(y.rows, y.cols);
    DESAP_TRY(multiply(job, in, weight, out));
    job.download(out, y);
    return job.wait();
  });
}

Status read_out(Context& context, ConstMatrix context_rows, const ReadOut& weights, Matrix attention, Matrix embedding) {
  return with_job(context, "read_out", [&](Job& job) -> Status {
    const Matrix in = job.upload(context_rows), attended = job.matrix(attention.rows, attention.cols);
    const Matrix normal = job.matrix(attention.rows, attention.cols), out = job.matrix(embedding.rows, embedding.cols);
    const float* gamma = job.upload(weights.post_norm_weight, attention.cols);
    const float* beta = job.upload(weights.post_norm_bias, attention.cols);
    int *norm_fault = job.fault(), *unit_fault = job.fault();
    DESAP_TRY(multiply(job, in, *weights.out, attended));
    cuda::layer_norm(job.queue(), attended, gamma, beta, weights.epsilon, normal, norm_fault);
    DESAP_TRY(job.check(norm_fault, "x"));
    DESAP_TRY(multiply(job, normal, *weights.visual_projection, out));
    cuda::unit_rows(job.queue(), out, out, unit_fault);
    DESAP_TRY(job.check(unit_fault, "x"));
    job.download(attended, attention);
    job.download(out, embedding);
    return job.wait();
  });
}

// ------------------------------------------------------------------------------------------- attention and saliency

Status attention(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Matrix y) {
  const int count = static_cast<int>(heads), padded_size = head_size_of(q.cols, heads);
  if (padded_size < 0) return {Code::unsupported, "head size"};
  return with_job(context, "attention", [&](Job& job) -> Status {
    const auto load = [&](ConstMatrix x) { return scaled(job, job.upload(x), count, padded_size); };
    const Scaled queries = load(q), keys = load(k), values = load(v);
    const float* scale = nullptr;
    DESAP_TRY(score_scale(job, queries, keys, heads, q.cols / heads, &scale));
    const OneImage image(job, q.rows, false, 0, 0, 0);
    const cuda::Operand attended = job.operand(q.rows, queries.operand.ld);
    const Matrix out = job.matrix(y.rows, y.cols);
    cuda::attention(job.queue(), job.precision(), {image.record, image.extent, count, padded_size, queries.operand,
                                                   keys.operand, values.operand, scale, attended, nullptr});
    cuda::from_operand(job.queue(), job.precision(), attended, count, padded_size, values.exponent, nullptr, out);
    job.download(out, y);
    return job.wait();
  });
}

Status saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, bool class_token, float* saliency_) {
  const int count = static_cast<int>(heads), padded_size = head_size_of(q.cols, heads);
  if (padded_size < 0) return {Code::unsupported, "head size"};
  return with_job(context, "saliency", [&](Job& job) -> Status {
    const auto load = [&](ConstMatrix x) { return scaled(job, job.upload(x), count, padded_size); };
    const Scaled queries = load(q), keys = load(k);
    const float* scale = nullptr;
    DESAP_TRY(score_scale(job, queries, keys, heads, q.cols / heads, &scale));
    const OneImage image(job, q.rows, class_token, 0, 0, 0);
    float* scratch = job.array<float>(cuda::saliency_scratch(image.extent, count, class_token));
    float* out = job.array<float>(image.extent.patches);
    cuda::saliency(job.queue(), job.precision(), {image.record, image.extent, count, padded_size, class_token, queries.operand,
                                                  keys.operand, scale, scratch, out, nullptr});
    job.download(out, image.extent.patches, saliency_);
    return job.wait();
  });
}

// ---------------------------------------------------------------------------------------------- align, top_k, merge

Status align(Context& context, ConstMatrix visual, ConstMatrix text, const float* query, const float* global,
             Alignment alignment, float lambda, float* task, AlignmentMatrices matrices) {
  return with_job(context, "align", [&](Job& job) -> Status {
    const int64_t patches = visual.rows, words = text.rows, size = visual.cols;
    const OneImage image(job, patches, false, words, 0, 0);
    std::vector<float> question;  // the text, and below it the query
    for (int64_t j = 0; j < words; j++) question.insert(question.end(), text.row(j), text.row(j) + size);
    question.insert(question.end(), query, query + size);
    const float* words_and_query = job.upload(question.data(), (words + 1) * size);
    const Matrix features = job.upload(visual);
    const float* class_row = job.upload(global, size);
    const float* factor = job.upload(&lambda, 1);
    float* scratch = job.array<float>(cuda::align_scratch(image.extent));
    float* scores = job.array<float>(patches);
    const auto room = [&](const float* wanted) { return wanted ? job.array<float>(patches * words) : nullptr; };
    const AlignmentMatrices out{room(matrices.similarity), room(matrices.visual_alignment), room(matrices.text_alignment)};
    cuda::align(job.queue(), {image.record, image.extent, static_cast<int>(size), false, features.data, class_row,
                              words_and_query, alignment, factor, scratch, scores, out, nullptr});
    const auto deliver = [&](const float* from, float* to) {
      if (to) job.download(from, patches * words, to);
    };
    job.download(scores, patches, task);
    deliver(out.similarity, matrices.similarity);
    deliver(out.visual_alignment, matrices.visual_alignment);
    deliver(out.text_alignment, matrices.text_alignment);
    return job.wait();
  });
}

Status top_k(Context& context, const float* scores, const uint8_t* excluded, int64_t size, int64_t k, int32_t* indices) {
  return with_job(context, "top_k", [&](Job& job) -> Status {
    const OneImage image(job, size, false, 0, k, k);
    const float* values = job.upload(scores, size);
    const uint8_t* mask = excluded ? job.upload(excluded, size) : nullptr;
    int* out = job.array<int>(k);
    uint8_t* source = job.array<uint8_t>(k);
    int *fault = job.fault(), *unused = job.fault();
    cuda::select(job.queue(), {image.record, image.extent, values, {}, mask, out, source, fault, unused, nullptr});
    DESAP_TRY(job.check(fault, "scores"));
    job.download(out, k, indices);
    return job.wait();
  });
}

Status merge(Context& context, ConstMatrix features, const int32_t* kept, int64_t k, Matrix tokens, int32_t* assignment,
             int32_t* counts) {
  return with_job(context, "merge", [&](Job& job) -> Status {
    const OneImage image(job, features.rows, false, 0, k, 0);
    const Matrix rows = job.upload(features), out = job.matrix(k, features.cols);
    const int* indices = job.upload(kept, k);
    float* inverse_norm = job.array<float>(features.rows);
    int* members = job.array<int>(features.rows);
    int* sizes = job.array<int>(k);
    uint8_t* scratch = job.array<uint8_t>(cuda::merge_scratch(image.extent));
    int* fault = job.fault();
    cuda::inverse_norms(job.queue(), rows, inverse_norm, fault);
    DESAP_TRY(job.check(fault, "features"));
    cuda::merge(job.queue(), {image.record, image.extent, static_cast<int>(features.cols), true, rows.data, inverse_norm,
                              indices, out.data, members, sizes, scratch, nullptr, nullptr});
    job.download(out, tokens);
    job.download(members, features.rows, assignment);
    job.download(sizes, k, counts);
    return job.wait();
  });
}

}  // namespace desap
