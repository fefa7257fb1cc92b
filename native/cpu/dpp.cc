// Greedy MAP of a determinantal point process: an incremental Cholesky factorization that takes the row of the largest gain next.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "greedy.h"

namespace desap {
namespace {

constexpr float least_gain = 1e-5f;      // of the first one: below it gains are rounding noise
constexpr float norm_of_zero = 1e12f;    // inverse_norms' of a row without a direction

}  // namespace

Status dpp(Context& context, ConstMatrix x, const float* relevance, float blend, int64_t count, int32_t* picked) {
  const Kernels& kernels = *context.kernels;
  const int64_t size = x.rows, ld = padded_ld(size);
  Scratch scratch(context.arena);
  float* norms = scratch.floats(size);
  float* squares = scratch.floats(size);
  float* gains = scratch.floats(size);
  float* factors = scratch.floats(count * ld);
  uint8_t* chosen = scratch.bytes(size);
  Likely likely(scratch, size);
  if (scratch.failed()) return out_of_memory("dpp");
  DESAP_TRY(kernels.inverse_norms(context, x, norms));
  for (int64_t i = 0; i < size; i++) {
    squares[i] = relevance[i] * relevance[i];
    if (!std::isfinite(squares[i])) return {Code::not_finite, "relevance", i};
    gains[i] = norms[i] < norm_of_zero ? 1 - blend + blend * squares[i] : 0;
  }
  std::memset(chosen, 0, static_cast<size_t>(size));

  const float least = least_gain * *std::max_element(gains, gains + size);
  int64_t k = 0, begin = 0;  // the factors before `begin` are in the rows that `likely` holds
  const auto rows = [&](const int32_t* of, int64_t some, Matrix y) {
    begin = k;
    return kernels.dpp_rows(context, x, norms, relevance, blend, {factors, k, size, ld}, of, some, y);
  };
  for (; k < count; k++) {
    const int64_t j = best_row(gains, chosen, size);
    if (!(gains[j] > least)) break;
    if (k + 1 < count) {
      const float* row = nullptr;
      DESAP_TRY(likely.row(context, gains, chosen, j, count - k - 2, rows, &row));
      kernels.dpp_factor(context, row, {factors + begin * ld, k - begin, size, ld}, j, std::sqrt(gains[j]), factors + k * ld, gains);
    }
    picked[k] = static_cast<int32_t>(j);
    chosen[j] = 1;
  }
  for (; k < count; k++) {
    const int64_t j = best_row(squares, chosen, size);
    picked[k] = static_cast<int32_t>(j);
    chosen[j] = 1;
  }
  return {};
}

}  // namespace desap
