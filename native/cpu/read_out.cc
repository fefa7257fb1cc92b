// attention = out(context); embeddings = unit_rows(visual_projection(layer_norm(attention)))
#include "dispatch.h"

namespace desap {

Status read_out(Context& context, ConstMatrix attended, const ReadOut& weights, Matrix attention, Matrix embeddings) {
  DESAP_TRY(linear(context, attended, *weights.out, attention));
  const int64_t ld = padded_ld(attention.cols);
  Scratch scratch(context.arena);
  const Matrix normal{scratch.floats(attention.rows * ld), attention.rows, attention.cols, ld};
  if (scratch.failed()) return out_of_memory("read_out");
  DESAP_TRY(layer_norm(context, attention, weights.post_norm_weight, weights.post_norm_bias, weights.epsilon, normal));
  DESAP_TRY(linear(context, normal, *weights.visual_projection, embeddings));
  return unit_rows(context, embeddings, embeddings);
}

}  // namespace desap
