// A_d in the coordinates of rotate_read_out (fold.h), from its square product y~ = V^T y:
//
//   rstd_i = 1 / sqrt(|y~_i|^2 / D + epsilon),  p_ik = rstd_i (B_kk y~_ik + B_k,k+1 y~_i,k+1) + shift_k,  y_i = p_i / max(|p_i|, 1e-12)
//
// Numerics: as layer_norm and unit_rows.
#pragma once

namespace desap {
namespace DESAP_ISA {

// x: [N, D], y: [N, E].
Status folded_read_out(Context& context, ConstMatrix x, const RotatedReadOut& weights, float epsilon, Matrix y) {
  FirstRow bad;
  const float *diagonal = weights.diagonal.data(), *superdiagonal = weights.superdiagonal.data(), *shift = weights.shift.data();
  context.pool.parallel_for(row_tasks(x.rows), [&](int64_t task, int) {
    const int64_t end = min((task + 1) * rows_per_task, x.rows);
    for (int64_t i = task * rows_per_task; i < end; i++) {
      const float* row = x.row(i);
      float* out = y.row(i);
      const float variance = row_sum(row, x.cols, [&](F v) { return v * v; }) / static_cast<float>(x.cols);
      const float scale = 1.0f / __builtin_sqrtf(variance + epsilon);
      for (int64_t k = 0; k < y.cols; k += lanes) {
        const int64_t n = y.cols - k, left = x.cols - k;
        const F here = left > 0 ? load_first(left, row + k) : F{}, next = left > 1 ? load_first(left - 1, row + k + 1) : F{};
        const F p = load_first(n, diagonal + k) * here + load_first(n, superdiagonal + k) * next;
        store_first(n, out + k, p * scale + load_first(n, shift + k));
      }
      const float unit = variance < __builtin_inff() ? inverse_norm(out, y.cols) : 0;
      if (unit == 0) {
        bad.report(i);
        continue;
      }
      for (int64_t k = 0; k < y.cols; k += lanes) store_first(y.cols - k, out + k, load_first(y.cols - k, out + k) * unit);
    }
  });
  return bad.status("x");
}

}  // namespace DESAP_ISA
}  // namespace desap
