// y_i = x_i / sqrt(mean(x_i^2) + epsilon) * weight
//
// Two passes over a row that stays in the L1 cache. Sums as in layer_norm.h.
#pragma once

namespace desap {
namespace DESAP_ISA {

Status rms_norm(Context& context, ConstMatrix x, const float* weight, float epsilon, Matrix y) {
  FirstRow bad;
  const int64_t size = x.cols;
  context.pool.parallel_for(row_tasks(x.rows), [&](int64_t task, int) {
    const int64_t end = (task + 1) * rows_per_task < x.rows ? (task + 1) * rows_per_task : x.rows;
    for (int64_t i = task * rows_per_task; i < end; i++) {
      const float* row = x.row(i);
      float* out = y.row(i);
      const float square = row_sum(row, size, [&](F v) { return v * v; }) / static_cast<float>(size);
      if (!(square < __builtin_inff())) {  // also NaN
        bad.report(i);
        continue;
      }
      const float scale = 1.0f / __builtin_sqrtf(square + epsilon);
      for (int64_t j = 0; j < size; j += lanes) {
        const int64_t n = size - j;
        const F normal = load_first(n, row + j) * scale;
        store_first(n, out + j, weight ? normal * load_first(n, weight + j) : normal);
      }
    }
  });
  return bad.status("x");
}

}  // namespace DESAP_ISA
}  // namespace desap
