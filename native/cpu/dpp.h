// The vector parts of dpp (dpp.cc): rows of the conditional kernel, and one more factor.
#pragma once

namespace desap {
namespace DESAP_ISA {

// y[c][i] = L_ij - sum_s factors[s][j] factors[s][i], j = of[c]: the rows j of the kernel, under the condition that the rows picked so
// far are in. Summed in ascending order of s, which dpp_factor goes on with.
Status dpp_rows(Context& context, ConstMatrix x, const float* norms, const float* relevance, float blend, ConstMatrix factors,
                const int32_t* of, int64_t count, Matrix y) {
  constexpr int64_t ld = most_rows_at_once;
  const int64_t width = round_up(count, lanes), depth = factors.rows;
  Scratch scratch(context.arena);
  float* packed = scratch.floats(depth * width);  // panels of -factors[s][j]
  if (scratch.failed()) return out_of_memory("dpp");
  float weights[most_rows_at_once] = {};
  for (int64_t c = 0; c < count; c++) weights[c] = blend * relevance[of[c]];
  for (int64_t begin = 0; begin < width; begin += panel_width) {
    const int64_t columns = min(panel_width, width - begin);
    for (int64_t s = 0; s < depth; s++) {
      for (int64_t c = 0; c < columns; c++) {
        packed[begin * depth + s * columns + c] = begin + c < count ? -factors.row(s)[of[begin + c]] : 0;
      }
    }
  }
  return product_rows(context, x, norms, of, count, y, [&](int64_t i, int64_t rows, float* product) {
    for (int64_t r = 0; r < rows; r++) {
      float* row = product + r * ld;
      for (int64_t c = 0; c < width; c += lanes) {
        store(row + c, load(row + c) * norms[i + r] * (load(weights + c) * relevance[i + r] + (1 - blend)));
      }
    }
    for (int64_t c = 0; depth > 0 && c < width; c += panel_width) {
      multiply_panel({depth, factors.data + i, 1, factors.ld, packed + c * depth, product + c, ld, product + c, ld}, rows,
                     min(panel_width, width - c));
    }
  });
}

// factor_i = (row_i - sum_s recent[s][j] recent[s][i]) / root; gains_i -= factor_i^2.
void dpp_factor(Context& context, const float* row, ConstMatrix recent, int64_t j, float root, float* factor, float* gains) {
  constexpr int64_t part = 2048, vectors = 4;
  const int64_t size = recent.cols;
  context.pool.parallel_for(blocks_of(size, part), [&](int64_t task, int) {
    const auto step = [&](int64_t i, int64_t n) {  // n < lanes: the end
      F rest = load_first(n, row + i);
      for (int64_t s = 0; s < recent.rows; s++) rest = load_first(n, recent.row(s) + i) * -recent.row(s)[j] + rest;
      rest = rest / root;
      store_first(n, factor + i, rest);
      store_first(n, gains + i, load_first(n, gains + i) - rest * rest);
    };
    const int64_t end = min((task + 1) * part, size);
    int64_t i = task * part;
    for (; i + vectors * lanes <= end; i += vectors * lanes) {
      F rest[vectors];
      DESAP_UNROLL for (int v = 0; v < vectors; v++) rest[v] = load(row + i + v * lanes);
      for (int64_t s = 0; s < recent.rows; s++) {
        const float* other = recent.row(s);
        const F weight = broadcast(-other[j]);
        DESAP_UNROLL for (int v = 0; v < vectors; v++) rest[v] = load(other + i + v * lanes) * weight + rest[v];
      }
      DESAP_UNROLL for (int v = 0; v < vectors; v++) {
        const F one = rest[v] / root;
        store(factor + i + v * lanes, one);
        store(gains + i + v * lanes, load(gains + i + v * lanes) - one * one);
      }
    }
    for (; i < end; i += lanes) step(i, end - i);
  });
}

}  // namespace DESAP_ISA
}  // namespace desap
