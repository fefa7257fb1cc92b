// y_i = (x_i - mean(x_i)) / sqrt(var(x_i) + epsilon) * weight + bias
//
// Three passes over a row that stays in the L1 cache: mean, then the variance of the centred values (the one-pass
// formula E[x^2] - mean^2 cancels when the mean is large), then the output. Sums run in 4 vectors of float32 partial
// sums, so one partial sum adds D / (4 lanes) terms and the error stays near 1e-7 relative.
#pragma once

namespace desap {
namespace DESAP_ISA {

// inverse_norms: [N], of the rows of x (unit_rows.h); null where not wanted.
inline Status norm_rows(Context& context, ConstMatrix x, const float* weight, const float* bias, float epsilon, Matrix y,
                        [[maybe_unused]] Matrix words, float* inverse_norms) {
  FirstRow bad;
  const int64_t size = x.cols;
  context.pool.parallel_for(row_tasks(x.rows), [&](int64_t task, int) {
    const int64_t end = (task + 1) * rows_per_task < x.rows ? (task + 1) * rows_per_task : x.rows;
    for (int64_t i = task * rows_per_task; i < end; i++) {
      const float* row = x.row(i);
      float* out = y.row(i);
      const float mean = row_sum(row, size, [&](F v) { return v; }) / static_cast<float>(size);
      const float variance = row_sum(row, size, [&](F v) { return (v - mean) * (v - mean); }) / static_cast<float>(size);
      if (!(variance < __builtin_inff())) {  // also NaN; an infinite mean gives an infinite or NaN variance
        bad.report(i);
        continue;
      }
      if (inverse_norms) inverse_norms[i] = inverse_norm(row, size);
      const float scale = 1.0f / __builtin_sqrtf(variance + epsilon);
      for (int64_t j = 0; j < size; j += lanes) {
        const int64_t n = size - j;
        const F normal = (load_first(n, row + j) - mean) * scale;
        store_first(n, out + j, weight ? normal * load_first(n, weight + j) + load_first(n, bias + j) : normal);
      }
#if defined(DESAP_BF16)
      if (words.data) bfloat16_rows({out, 1, size, size}, words.row(i), words.ld);
#endif
    }
  });
  return bad.status("x");
}

Status layer_norm(Context& context, ConstMatrix x, const float* weight, const float* bias, float epsilon, Matrix y) {
  return norm_rows(context, x, weight, bias, epsilon, y, {}, nullptr);
}

Status normalize(Context& context, ConstMatrix x, float epsilon, Matrix y, Matrix words, float* inverse_norms) {
  return norm_rows(context, x, nullptr, nullptr, epsilon, y, words, inverse_norms);
}

}  // namespace DESAP_ISA
}  // namespace desap
