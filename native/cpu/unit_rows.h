// y_i = x_i / max(|x_i|, 1e-12)
//
// The squares are summed in float32: a row whose elements exceed about 1e19 has no finite norm and counts as not finite.
#pragma once

namespace desap {
namespace DESAP_ISA {

// 1 / max(|x|, 1e-12); 0 where the norm is not finite (no other row gives 0).
DESAP_INLINE float inverse_norm(const float* x, int64_t size) {
  const float norm = __builtin_sqrtf(row_sum(x, size, [&](F v) { return v * v; }));
  if (!(norm < __builtin_inff())) return 0;
  return 1.0f / (norm > 1e-12f ? norm : 1e-12f);
}

// y: [N], of the rows of x.
Status inverse_norms(Context& context, ConstMatrix x, float* y) {
  FirstRow bad;
  context.pool.parallel_for(row_tasks(x.rows), [&](int64_t task, int) {
    const int64_t end = (task + 1) * rows_per_task < x.rows ? (task + 1) * rows_per_task : x.rows;
    for (int64_t i = task * rows_per_task; i < end; i++) {
      y[i] = inverse_norm(x.row(i), x.cols);
      if (y[i] == 0) bad.report(i);
    }
  });
  return bad.status("x");
}

Status unit_rows(Context& context, ConstMatrix x, Matrix y) {
  FirstRow bad;
  context.pool.parallel_for(row_tasks(x.rows), [&](int64_t task, int) {
    const int64_t end = (task + 1) * rows_per_task < x.rows ? (task + 1) * rows_per_task : x.rows;
    for (int64_t i = task * rows_per_task; i < end; i++) {
      const float scale = inverse_norm(x.row(i), x.cols);
      if (scale == 0) {
        bad.report(i);
        continue;
      }
      for (int64_t j = 0; j < x.cols; j += lanes) {
        const int64_t n = x.cols - j;
        store_first(n, y.row(i) + j, load_first(n, x.row(i) + j) * scale);
      }
    }
  });
  return bad.status("x");
}

}  // namespace DESAP_ISA
}  // namespace desap
