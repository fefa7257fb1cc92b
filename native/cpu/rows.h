// Sums along a row, and the work split of kernels that treat rows one by one.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int64_t rows_per_task = 16;

inline int64_t row_tasks(int64_t rows) { return (rows + rows_per_task - 1) / rows_per_task; }

// sum of term(x_j) over a row of `size` elements. `term` is a lambda that captures, if only by [&]: one that cannot capture
// also converts to a function pointer, and that function would lie outside the target region.
template <class Term>
DESAP_INLINE float row_sum(const float* x, int64_t size, const Term& term) {
  F s0{}, s1{}, s2{}, s3{};
  int64_t j = 0;
  for (; j + 4 * lanes <= size; j += 4 * lanes) {
    s0 += term(load(x + j));
    s1 += term(load(x + j + lanes));
    s2 += term(load(x + j + 2 * lanes));
    s3 += term(load(x + j + 3 * lanes));
  }
  for (; j + lanes <= size; j += lanes) s0 += term(load(x + j));
  if (j < size) s1 += first(size - j, term(load_first(size - j, x + j)));
  return sum((s0 + s1) + (s2 + s3));
}

// a . b
DESAP_INLINE float dot(const float* a, const float* b, int64_t size) {
  F s0{}, s1{};
  int64_t d = 0;
  for (; d + 2 * lanes <= size; d += 2 * lanes) {
    s0 = load(a + d) * load(b + d) + s0;
    s1 = load(a + d + lanes) * load(b + d + lanes) + s1;
  }
  for (; d < size; d += lanes) s0 = load_first(size - d, a + d) * load_first(size - d, b + d) + s0;
  return sum(s0 + s1);
}

}  // namespace DESAP_ISA
}  // namespace desap
