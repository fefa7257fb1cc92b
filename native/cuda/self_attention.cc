// An encoder's own attention and the saliency of its weights: the kernels of attention.cu and saliency.cu, one after the other. The scores
// are computed by both: each needs them in an order of its own.
#include "kernel_run.h"

namespace desap::cuda {

void self_attention(Queue& queue, Precision precision, const Attention& a, float* scratch, Relocatable<float> saliency) {
  attention(queue, precision, a);
  Saliency scores{};
  scores.images = a.images;
  scores.extent = a.extent;
  scores.heads = a.heads;
  scores.padded_size = a.padded_size;
  scores.q = a.q;
  scores.k = a.k;
  scores.scale = a.scale;
  scores.scratch = scratch;
  scores.saliency = saliency;
  cuda::saliency(queue, precision, scores);
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::OneImage;
using cuda::Scaled;
using cuda::with_run;

Status self_attention(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Rotary rotary, Matrix y,
                      float* saliency) {
  const int count = static_cast<int>(heads), padded_size = cuda::padded_head_size_of(q.cols, heads);
  if (padded_size < 0) return {Code::unsupported, "head size"};
  return with_run(context, "attention", [&](KernelRun& run) -> Status {
    cuda::ScoreOperands operands{};
    DESAP_TRY(score_operands(run, q, k, heads, padded_size, rotary, &operands));
    const Scaled values = scaled(run, run.upload(v), count, padded_size);
    const OneImage image(run, q.rows, false, 0, 0, 0);
    const cuda::Operand attended = run.operand(q.rows, values.operand.ld);
    const Matrix out = run.matrix(y.rows, y.cols);
    float* scores = run.array<float>(q.rows);
    cuda::Attention attention{};
    attention.images = image.record;
    attention.extent = image.extent;
    attention.heads = count;
    attention.padded_size = padded_size;
    attention.q = operands.q.operand;
    attention.k = operands.k.operand;
    attention.v = values.operand;
    attention.scale = operands.scale;
    attention.y = attended;
    cuda::self_attention(run.queue(), run.precision(), attention, run.array<float>(cuda::saliency_scratch(image.extent, count, false)), scores);
    cuda::from_operand(run.queue(), run.precision(), attended, count, padded_size, values.exponent, nullptr, out);
    run.download(out, y);
    run.download(scores, q.rows, saliency);
    return run.wait();
  });
}

}  // namespace desap
