// An encoder's own attention and the saliency of its weights: rotary.cu turns queries and keys, attention.cu and saliency.cu read them. The two
// kernels hold no scores in common: each block of them is cheaper computed again than kept.
#include "kernel_run.h"
#include "kernels.cuh"

namespace desap {

using cuda::KernelRun;
using cuda::OneImage;
using cuda::Scaled;

Status self_attention(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Rotary rotary, Matrix y, float* scores) {
  const int count = static_cast<int>(heads), padded_size = cuda::padded_head_size_of(q.cols, heads);
  const int64_t size = q.cols / heads;
  if (padded_size < 0) return {Code::unsupported, "head size"};
  return cuda::with_run(context, "self_attention", [&](KernelRun& run) -> Status {
    const auto load = [&](ConstMatrix x) { return scaled(run, run.upload(x), count, padded_size); };
    const Scaled queries = load(q), keys = load(k), values = load(v);
    const int exponent = cuda::rotary_exponent(rotary, q.rows * size);
    if (rotary.cos) {
      float *cos = run.array<float>(q.rows * size), *sin = run.array<float>(q.rows * size);
      cuda::send_rotary(run, rotary, q.rows * size, exponent, cos, sin);
      for (const Scaled* x : {&queries, &keys})
        cuda::rotate(run.queue(), run.precision(), x->operand, q.rows, count, padded_size, static_cast<int>(size), {cos, sin});
    }
    const float* scale = nullptr;
    DESAP_TRY(score_scale(run, queries, keys, heads, size, 2 * exponent, &scale));
    const OneImage image(run, q.rows, false, 0, 0, 0);
    const cuda::Operand attended = run.operand(q.rows, queries.operand.ld);
    const Matrix out = run.matrix(y.rows, y.cols);
    cuda::Attention attention{};
    attention.images = image.record;
    attention.extent = image.extent;
    attention.heads = count;
    attention.padded_size = padded_size;
    attention.q = queries.operand;
    attention.k = keys.operand;
    attention.v = values.operand;
    attention.scale = scale;
    attention.y = attended;
    cuda::attention(run.queue(), run.precision(), attention);
    cuda::from_operand(run.queue(), run.precision(), attended, count, padded_size, values.exponent, nullptr, out);
    run.download(out, y);

    float* received = run.array<float>(q.rows);
    cuda::Saliency saliency{};
    saliency.images = image.record;
    saliency.extent = image.extent;
    saliency.heads = count;
    saliency.padded_size = padded_size;
    saliency.q = queries.operand;
    saliency.k = keys.operand;
    saliency.scale = scale;
    saliency.scratch = run.array<float>(cuda::saliency_scratch(image.extent, count, false));
    saliency.saliency = received;
    cuda::saliency(run.queue(), run.precision(), saliency);
    run.download(received, q.rows, scores);
    return run.wait();
  });
}

}  // namespace desap
