// What SigLIP's read-out takes besides products, norms and the probe's scores (query_saliency).
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int64_t weighed_together = 64;  // rows that are summed first

// y = sum over rows j of p_jh v_j, each head h with its own p. shares: p / H [N, H or more]; v: [N, D]; y: [D].
Status weighted_row(Context& context, ConstMatrix shares, ConstMatrix v, int64_t heads, float* y) {
  const int64_t size = v.cols / heads;
  context.pool.parallel_for(heads, [&](int64_t h, int) {
    for (int64_t d = h * size; d < (h + 1) * size; d += lanes) {
      const int64_t n = (h + 1) * size - d;
      F total{};
      for (int64_t begin = 0; begin < v.rows; begin += weighed_together) {
        F part{};
        for (int64_t j = begin; j < min(begin + weighed_together, v.rows); j++) part = load_first(n, v.row(j) + d) * shares.row(j)[h] + part;
        total += part;
      }
      store_first(n, y + d, total * static_cast<float>(heads));
    }
  });
  return {};
}

// x <- gelu(x) = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) = x / (1 + 2^-e), e = 2 log2(e) sqrt(2 / pi) (x + 0.044715 x^3).
// x: [N, F], any rows.
Status gelu(Context& context, Matrix x) {
  constexpr float factor = 2 * log2_e * 0.797884561f;
  context.pool.parallel_for(row_tasks(x.rows), [&](int64_t task, int) {
    for (int64_t i = task * rows_per_task; i < min((task + 1) * rows_per_task, x.rows); i++) {
      for (int64_t j = 0; j < x.cols; j += lanes) {
        const int64_t n = x.cols - j;
        const F v = load_first(n, x.row(i) + j), e = (v * v * v * 0.044715f + v) * factor;
        const F small = -max(e, broadcast(-126.0f));  // where 2^-e leaves float32 the result is 0 to all its digits
        store_first(n, x.row(i) + j, v / (exp2(small) + 1.0f));
      }
    }
  });
  return {};
}

}  // namespace DESAP_ISA
}  // namespace desap
