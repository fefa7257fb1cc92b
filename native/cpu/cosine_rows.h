// Cosines of all rows of a matrix with a few of them, which the greedy selections of different rows ask for (farthest_points, dpp).
//
// cos(i, j) = (x_i . u_j) / |x_i|, u_j = x_j / |x_j|. x is multiplied where it lies; the few are packed. Such rows are float32 whatever the
// context's precision, and each has the same bits in whatever company it is computed.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int64_t cosine_block = 48;  // rows of x at a time, a multiple of every tile's

// Rows j of x, each times its inverse norm, as the B of gemm.h.
inline void pack_units(ConstMatrix x, const float* norms, const int32_t* of, int64_t count, float* unit, float* packed) {
  for (int64_t c = 0; c < count; c++) {
    const float* row = x.row(of[c]);
    for (int64_t d = 0; d < x.cols; d++) unit[c * x.cols + d] = row[d] * norms[of[c]];
  }
  for (int64_t p = 0; p < blocks_of(count, panel_width); p++) pack_rows({unit, count, x.cols, x.cols}, p, packed);
}

// y[c][i] = finished x_i . u_c. `finish(i, rows, products)` sees the products of a block of rows first: [rows][most_rows_at_once].
template <class Finish>
Status product_rows(Context& context, ConstMatrix x, const float* norms, const int32_t* of, int64_t count, Matrix y, const Finish& finish) {
  static const float zeros[panel_width] = {};
  constexpr int64_t ld = most_rows_at_once;
  const int64_t width = round_up(count, lanes), blocks = blocks_of(x.rows, cosine_block);
  Scratch scratch(context.arena);
  float* unit = scratch.floats(count * x.cols);
  float* packed = scratch.floats(packed_size(x.cols, count));
  float* products = scratch.floats(context.pool.threads() * cosine_block * ld);
  if (scratch.failed()) return out_of_memory("similarities");
  pack_units(x, norms, of, count, unit, packed);
  context.pool.parallel_for(blocks, [&](int64_t block, int thread) {
    const int64_t i = block * cosine_block, rows = min(cosine_block, x.rows - i);
    float* product = products + thread * cosine_block * ld;
    for (int64_t c = 0; c < width; c += panel_width) {
      multiply_panel({x.cols, x.row(i), x.ld, 1, packed + c * x.cols, zeros, 0, product + c, ld}, rows, min(panel_width, width - c));
    }
    finish(i, rows, product);
    for (int64_t c = 0; c < count; c++) {
      for (int64_t r = 0; r < rows; r++) y.row(c)[i + r] = product[r * ld + c];
    }
  });
  return {};
}

Status cosine_rows(Context& context, ConstMatrix x, const float* norms, const int32_t* of, int64_t count, Matrix y) {
  return product_rows(context, x, norms, of, count, y, [&](int64_t i, int64_t rows, float* product) {
    for (int64_t r = 0; r < rows; r++) {
      float* row = product + r * most_rows_at_once;
      for (int64_t c = 0; c < most_rows_at_once; c += lanes) store(row + c, load(row + c) * norms[i + r]);
    }
  });
}

}  // namespace DESAP_ISA
}  // namespace desap
