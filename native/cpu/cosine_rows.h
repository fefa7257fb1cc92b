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

// closest[i] = the largest cosine of row i with another one; -infinity where there is none. Each pair is multiplied once, so that two
// rows which are each other's closest have equal cosines. A block of rows stays in L2 while the panels pass by.
Status closest_others(Context& context, ConstMatrix x, const float* norms, float* closest) {
  static const float zeros[panel_width] = {};
  constexpr int64_t block_rows = 96;
  const int64_t panels = blocks_of(x.rows, panel_width), blocks = blocks_of(x.rows, block_rows), threads = context.pool.threads();
  const int64_t block_size = block_rows * panel_width;
  Scratch scratch(context.arena);
  float* packed = scratch.floats(packed_size(x.cols, x.rows));
  float* products = scratch.floats(threads * block_size);
  float* found = scratch.floats(threads * x.rows);
  int32_t* first_task = scratch.ints(blocks + 1);
  if (scratch.failed()) return out_of_memory("similarities");
  for (int64_t i = 0; i < threads * x.rows; i++) found[i] = -__builtin_inff();
  context.pool.parallel_for(panels, [&](int64_t p, int) {
    pack_rows(x, p, packed);
    const int64_t begin = p * panel_width, count = min(panel_width, x.rows - begin), width = round_up(count, lanes);
    float* panel = packed + begin * x.cols;
    float scales[panel_width] = {};
    for (int64_t j = 0; j < count; j++) scales[j] = norms[begin + j];
    for (int64_t k = 0; k < x.cols; k++) {
      for (int64_t j = 0; j < width; j += lanes) store(panel + k * width + j, load(panel + k * width + j) * load(scales + j));
    }
  });

  // Of the block's rows with the panels that hold a later row.
  first_task[0] = 0;
  for (int64_t b = 0; b < blocks; b++) first_task[b + 1] = first_task[b] + static_cast<int32_t>(panels - b * block_rows / panel_width);
  context.pool.parallel_for(first_task[blocks], [&](int64_t task, int thread) {
    int64_t b = 0;
    while (first_task[b + 1] <= task) b++;
    const int64_t p = b * block_rows / panel_width + task - first_task[b];
    const int64_t i = b * block_rows, rows = min(block_rows, x.rows - i), j = p * panel_width;
    const int64_t count = min(panel_width, x.rows - j), width = round_up(count, lanes);
    float* product = products + thread * block_size;
    float* mine = found + thread * x.rows;
    multiply_panel({x.cols, x.row(i), x.ld, 1, packed + j * x.cols, zeros, 0, product, panel_width}, rows, width);
    for (int64_t r = 0; r < rows; r++) {
      float* row = product + r * panel_width;
      for (int64_t c = 0; c < width; c += lanes) store(row + c, load(row + c) * norms[i + r]);
      for (int64_t c = 0; c < min(i + r + 1 - j, count); c++) row[c] = -__builtin_inff();  // itself, and the pairs of another task
      for (int64_t c = count; c < width; c++) row[c] = -__builtin_inff();
      F most = broadcast(-__builtin_inff());
      for (int64_t c = 0; c < width; c += lanes) most = max(most, load(row + c));
      mine[i + r] = mine[i + r] > largest(most) ? mine[i + r] : largest(most);
    }
    for (int64_t c = 0; c < count; c += lanes) {
      F most = load_first(count - c, mine + j + c);
      for (int64_t r = 0; r < rows; r++) most = max(most, load(product + r * panel_width + c));
      store_first(count - c, mine + j + c, most);
    }
  });
  for (int64_t i = 0; i < x.rows; i++) {
    closest[i] = found[i];
    for (int64_t t = 1; t < threads; t++) closest[i] = closest[i] > found[t * x.rows + i] ? closest[i] : found[t * x.rows + i];
  }
  return {};
}

}  // namespace DESAP_ISA
}  // namespace desap
