// Each kernel alone, for the host: inputs up, the kernels of kernels.cuh, results down. The matrix products here take
// operands of any magnitude: they are scaled by a power of two of their own, which the host undoes in the scale that the
// kernel applies anyway.
#include "../kernels.h"

#include <cmath>
#include <vector>

#include "kernel_run.h"
#include "weights.h"

namespace desap {
namespace {

using cuda::KernelRun;
using cuda::OneImage;
using cuda::with_run;

// A matrix in device memory as an operand, with the power of two that scales it.
struct Scaled {
  cuda::Operand operand;
  int* exponent;
};

Scaled scaled(KernelRun& run, ConstMatrix x, int heads, int padded_size) {
  const Scaled result{run.operand(x.rows, cuda::padded_width(int64_t{heads} * padded_size)), run.array<int>(1)};
  cuda::magnitude(run.queue(), x, result.exponent);
  cuda::to_operand(run.queue(), run.precision(), x, heads, padded_size, result.exponent, result.operand);
  return result;
}

// The scores' scale of each head: log2 e / sqrt(dh), without the operands' own scales.
Status score_scale(KernelRun& run, const Scaled& q, const Scaled& k, int64_t heads, int64_t size, const float** scale) {
  int left = 0, right = 0;
  run.download(q.exponent, 1, &left);
  DESAP_TRY(run.fetch(k.exponent, &right));
  constexpr double log2_e = 1.4426950408889634;
  const double value = std::ldexp(log2_e / std::sqrt(static_cast<double>(size)), -(left + right));
  *scale = run.upload(std::vector<float>(static_cast<size_t>(heads), static_cast<float>(value)).data(), heads);
  return {};
}

int head_size_of(int64_t width, int64_t heads) {
  const int64_t size = width / heads;
  return size > cuda::largest_head_size ? -1 : cuda::padded_head_size(static_cast<int>(size));
}

}  // namespace

// ---------------------------------------------------------------------------------------------------- element by element

Status convert_half(Context& context, const uint16_t* x, int64_t size, float* y) {
  if (size == 0) return {};
  return with_run(context, "convert_half", [&](KernelRun& run) {
    float* out = run.array<float>(size);
    cuda::convert_half(run.queue(), run.upload(x, size), size, out);
    run.download(out, size, y);
    return run.wait();
  });
}

Status convert_to_half(Context& context, const float* x, int64_t size, uint16_t* y) {
  if (size == 0) return {};
  return with_run(context, "convert_to_half", [&](KernelRun& run) {
    uint16_t* out = run.array<uint16_t>(size);
    cuda::convert_to_half(run.queue(), run.upload(x, size), size, out);
    run.download(out, size, y);
    return run.wait();
  });
}

Status layer_norm(Context& context, ConstMatrix x, const float* weight, const float* bias, float epsilon, Matrix y) {
  return with_run(context, "layer_norm", [&](KernelRun& run) -> Status {
    const Matrix rows = run.upload(x);
    const float* gamma = run.upload(weight, x.cols);
    const float* beta = run.upload(bias, x.cols);
    int* fault = run.fault();
    cuda::layer_norm(run.queue(), rows, gamma, beta, epsilon, rows, fault);
    DESAP_TRY(run.check(fault, "x"));
    run.download(rows, y);
    return run.wait();
  });
}

Status unit_rows(Context& context, ConstMatrix x, Matrix y) {
  return with_run(context, "unit_rows", [&](KernelRun& run) -> Status {
    const Matrix rows = run.upload(x);
    int* fault = run.fault();
    cuda::unit_rows(run.queue(), rows, rows, fault);
    DESAP_TRY(run.check(fault, "x"));
    run.download(rows, y);
    return run.wait();
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
Status multiply(KernelRun& run, ConstMatrix x, const Linear& linear, Matrix y) {
  const Scaled operand = scaled(run, x, 1, static_cast<int>(cuda::padded_width(x.cols)));
  int exponent = 0;
  DESAP_TRY(run.fetch(operand.exponent, &exponent));
  std::vector<float> scale;
  for (float s : linear.scale) scale.push_back(static_cast<float>(std::ldexp(static_cast<double>(s), -exponent)));
  cuda::Weights weights = linear.layer.all();
  weights.scale = run.upload(scale.data(), weights.out);
  cuda::linear(run.queue(), run.precision(), operand.operand, x.rows, weights, y, nullptr);
  return run.wait();
}

}  // namespace

Status linear(Context& context, ConstMatrix x, const Linear& weight, Matrix y) {
  return with_run(context, "linear", [&](KernelRun& run) -> Status {
    const Matrix in = run.upload(x), out = run.matrix(y.rows, y.cols);
    DESAP_TRY(multiply(run, in, weight, out));
    run.download(out, y);
    return run.wait();
  });
}

Status read_out(Context& context, ConstMatrix context_rows, const ReadOut& weights, Matrix attention, Matrix embedding) {
  return with_run(context, "read_out", [&](KernelRun& run) -> Status {
    const Matrix in = run.upload(context_rows), attended = run.matrix(attention.rows, attention.cols);
    const Matrix normal = run.matrix(attention.rows, attention.cols), out = run.matrix(embedding.rows, embedding.cols);
    const float* gamma = run.upload(weights.post_norm_weight, attention.cols);
    const float* beta = run.upload(weights.post_norm_bias, attention.cols);
    int *norm_fault = run.fault(), *unit_fault = run.fault();
    DESAP_TRY(multiply(run, in, *weights.out, attended));
    cuda::layer_norm(run.queue(), attended, gamma, beta, weights.epsilon, normal, norm_fault);
    DESAP_TRY(run.check(norm_fault, "x"));
    DESAP_TRY(multiply(run, normal, *weights.visual_projection, out));
    cuda::unit_rows(run.queue(), out, out, unit_fault);
    DESAP_TRY(run.check(unit_fault, "x"));
    run.download(attended, attention);
    run.download(out, embedding);
    return run.wait();
  });
}

// ------------------------------------------------------------------------------------------- attention and saliency

Status attention(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Matrix y) {
  const int count = static_cast<int>(heads), padded_size = head_size_of(q.cols, heads);
  if (padded_size < 0) return {Code::unsupported, "head size"};
  return with_run(context, "attention", [&](KernelRun& run) -> Status {
    const auto load = [&](ConstMatrix x) { return scaled(run, run.upload(x), count, padded_size); };
    const Scaled queries = load(q), keys = load(k), values = load(v);
    const float* scale = nullptr;
    DESAP_TRY(score_scale(run, queries, keys, heads, q.cols / heads, &scale));
    const OneImage image(run, q.rows, false, 0, 0, 0);
    const cuda::Operand attended = run.operand(q.rows, queries.operand.ld);
    const Matrix out = run.matrix(y.rows, y.cols);
    cuda::attention(run.queue(), run.precision(), {image.record, image.extent, count, padded_size, queries.operand,
                                                   keys.operand, values.operand, scale, attended, nullptr});
    cuda::from_operand(run.queue(), run.precision(), attended, count, padded_size, values.exponent, nullptr, out);
    run.download(out, y);
    return run.wait();
  });
}

Status saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, bool class_token, float* saliency_) {
  const int count = static_cast<int>(heads), padded_size = head_size_of(q.cols, heads);
  if (padded_size < 0) return {Code::unsupported, "head size"};
  return with_run(context, "saliency", [&](KernelRun& run) -> Status {
    const auto load = [&](ConstMatrix x) { return scaled(run, run.upload(x), count, padded_size); };
    const Scaled queries = load(q), keys = load(k);
    const float* scale = nullptr;
    DESAP_TRY(score_scale(run, queries, keys, heads, q.cols / heads, &scale));
    const OneImage image(run, q.rows, class_token, 0, 0, 0);
    float* scratch = run.array<float>(cuda::saliency_scratch(image.extent, count, class_token));
    float* out = run.array<float>(image.extent.patches);
    cuda::saliency(run.queue(), run.precision(), {image.record, image.extent, count, padded_size, class_token, queries.operand,
                                                  keys.operand, scale, scratch, out, nullptr});
    run.download(out, image.extent.patches, saliency_);
    return run.wait();
  });
}

// ---------------------------------------------------------------------------------------------- align, top_k, merge

Status align(Context& context, ConstMatrix visual, ConstMatrix text, const float* query, const float* global,
             Alignment alignment, float lambda, float* task, AlignmentMatrices matrices) {
  return with_run(context, "align", [&](KernelRun& run) -> Status {
    const int64_t patches = visual.rows, words = text.rows, size = visual.cols;
    const OneImage image(run, patches, false, words, 0, 0);
    std::vector<float> question;  // the text, and below it the query
    for (int64_t j = 0; j < words; j++) question.insert(question.end(), text.row(j), text.row(j) + size);
    question.insert(question.end(), query, query + size);
    const float* words_and_query = run.upload(question.data(), (words + 1) * size);
    const Matrix features = run.upload(visual);
    const float* class_row = run.upload(global, size);
    const float* factor = run.upload(&lambda, 1);
    float* scratch = run.array<float>(cuda::align_scratch(image.extent));
    float* scores = run.array<float>(patches);
    const auto room = [&](const float* wanted) { return wanted ? run.array<float>(patches * words) : nullptr; };
    const AlignmentMatrices out{room(matrices.similarity), room(matrices.visual_alignment), room(matrices.text_alignment)};
    cuda::align(run.queue(), {image.record, image.extent, static_cast<int>(size), false, features.data, class_row,
                              words_and_query, alignment, factor, scratch, scores, out, nullptr});
    const auto deliver = [&](const float* from, float* to) {
      if (to) run.download(from, patches * words, to);
    };
    run.download(scores, patches, task);
    deliver(out.similarity, matrices.similarity);
    deliver(out.visual_alignment, matrices.visual_alignment);
    deliver(out.text_alignment, matrices.text_alignment);
    return run.wait();
  });
}

namespace {

constexpr int64_t most_scores = 65536;

// top_k's excluded scores: no saliency, all that is kept comes from the first scores.
Status select(KernelRun& run, const float* task, const float* saliency, const uint8_t* excluded, int64_t size, int64_t keep,
              int64_t task_keep, const char* task_name, int32_t* indices, uint8_t* source) {
  if (size > most_scores) return {Code::unsupported, "scores"};
  const OneImage image(run, size, false, 0, keep, task_keep);
  int *task_fault = run.fault(), *saliency_fault = run.fault();
  cuda::Select select{};
  select.images = image.record;
  select.extent = image.extent;
  select.task = task ? run.upload(task, size) : nullptr;
  if (saliency) select.saliency = run.upload(saliency, size);
  select.excluded = excluded ? run.upload(excluded, size) : nullptr;
  select.indices = run.array<int>(keep);
  select.source = run.array<uint8_t>(keep);
  select.task_fault = task_fault;
  select.saliency_fault = saliency_fault;
  cuda::select(run.queue(), select);
  DESAP_TRY(run.check(task_fault, task_name));
  DESAP_TRY(run.check(saliency_fault, "saliency"));
  run.download(select.indices, keep, indices);
  if (source) run.download(select.source, keep, source);
  return run.wait();
}

}  // namespace

Status top_k(Context& context, const float* scores, const uint8_t* excluded, int64_t size, int64_t k, int32_t* indices) {
  return with_run(context, "top_k", [&](KernelRun& run) {
    return select(run, scores, nullptr, excluded, size, k, k, "scores", indices, nullptr);
  });
}

Status select(Context& context, const float* task, const float* saliency, int64_t size, int64_t keep, int64_t task_keep,
              int32_t* indices, uint8_t* source) {
  return with_run(context, "select", [&](KernelRun& run) {
    return select(run, task, saliency, nullptr, size, keep, task_keep, "task", indices, source);
  });
}

Status merge(Context& context, ConstMatrix features, const int32_t* kept, int64_t k, Matrix tokens, int32_t* assignment,
             int32_t* counts) {
  return with_run(context, "merge", [&](KernelRun& run) -> Status {
    const OneImage image(run, features.rows, false, 0, k, 0);
    const Matrix rows = run.upload(features), out = run.matrix(k, features.cols);
    const int* indices = run.upload(kept, k);
    float* inverse_norm = run.array<float>(features.rows);
    int* members = run.array<int>(features.rows);
    int* sizes = run.array<int>(k);
    uint8_t* scratch = run.array<uint8_t>(cuda::merge_scratch(image.extent));
    int* fault = run.fault();
    cuda::inverse_norms(run.queue(), rows, inverse_norm, fault);
    DESAP_TRY(run.check(fault, "features"));
    cuda::merge(run.queue(), {image.record, image.extent, static_cast<int>(features.cols), true, rows.data, inverse_norm,
                              indices, out.data, members, sizes, scratch, nullptr, nullptr});
    run.download(out, tokens);
    run.download(members, features.rows, assignment);
    run.download(sizes, k, counts);
    return run.wait();
  });
}

}  // namespace desap
