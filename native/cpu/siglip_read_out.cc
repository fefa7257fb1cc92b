// SigLIP's pooling head, each row by itself and all rows at once: the value of all rows is one more row, and from there on the N + 1
// rows go the same way. Memory: two arrays [N, D] beside the operands; the MLP goes block by block.
#include <algorithm>

#include "analysis.h"
#include "linear_layout.h"

namespace desap {
namespace {

constexpr int64_t block_rows = 256;  // of the MLP: 256 x 4304 floats are 4.4 MB, and its weights are read once per block

// Of a block that begins at row i.
Status of_block(Status status, int64_t i) {
  if (status.code == Code::not_finite) status.where += i;
  return status;
}

// y_i = unit(z_i + mlp(layer_norm(z_i))), y the rows of the embeddings and then the global row.
Status read_rows(Context& context, ConstMatrix z, const SiglipReadOut& head, Matrix embeddings, float* global) {
  const int64_t width = z.cols, last = z.rows - 1;
  Scratch scratch(context.arena);
  const int64_t most = std::min(block_rows, z.rows);
  const Matrix room = padded(scratch, most, width), hidden = padded(scratch, most, head.fc1->out);
  if (scratch.failed()) return out_of_memory("siglip_read_out");
  for (int64_t i = 0; i < z.rows; i += block_rows) {
    const int64_t rows = std::min(block_rows, z.rows - i), of_embeddings = std::min(rows, last - i);
    const Matrix y{room.data, rows, width, room.ld}, x{hidden.data, rows, hidden.cols, hidden.ld};
    const ConstMatrix block{z.row(i), rows, width, z.ld};
    DESAP_TRY(of_block(layer_norm(context, block, head.norm_weight, head.norm_bias, head.epsilon, y), i));
    DESAP_TRY(linear(context, y, *head.fc1, x));
    DESAP_TRY(context.kernels->gelu(context, x));
    DESAP_TRY(linear(context, x, *head.fc2, y));
    for (int64_t r = 0; r < rows; r++) {
      for (int64_t d = 0; d < width; d++) y.row(r)[d] += block.row(r)[d];
    }
    const Matrix unit{embeddings.row(i), of_embeddings, width, embeddings.ld};
    DESAP_TRY(of_block(unit_rows(context, {y.data, of_embeddings, width, y.ld}, unit), i));
    if (of_embeddings < rows) DESAP_TRY(of_block(unit_rows(context, {y.row(last - i), 1, width, width}, {global, 1, width, width}), last));
  }
  return {};
}

}  // namespace

Status siglip_read_out(Context& context, ConstMatrix attention, const SiglipReadOut& head, Matrix embeddings, float* global, float* saliency) {
  const int64_t rows = attention.rows, width = attention.cols;
  Scratch scratch(context.arena);
  const Matrix normal = padded(scratch, rows + 1, width), values = padded(scratch, rows + 1, width);
  const Matrix shares{scratch.floats(rows * padded_ld(head.heads)), rows, padded_ld(head.heads), padded_ld(head.heads)};
  if (scratch.failed()) return out_of_memory("siglip_read_out");
  const auto first = [&](Matrix x) { return Matrix{x.data, rows, width, x.ld}; };
  DESAP_TRY(layer_norm(context, attention, head.post_norm_weight, head.post_norm_bias, head.epsilon, first(normal)));
  const Matrix keys = embeddings;  // which are written last
  DESAP_TRY(linear(context, first(normal), *head.key, keys));
  DESAP_TRY(context.kernels->query_saliency(context, head.query, keys, head.heads, {}, 0, shares, saliency));
  DESAP_TRY(linear(context, first(normal), *head.value, first(values)));
  DESAP_TRY(context.kernels->weighted_row(context, shares, first(values), head.heads, values.row(rows)));
  const Matrix z = normal;
  DESAP_TRY(linear(context, values, *head.out, z));
  return read_rows(context, z, head, embeddings, global);
}

}  // namespace desap
