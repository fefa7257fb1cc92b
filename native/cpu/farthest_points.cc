// Farthest points over rows of cosines: the distance is 1 - cosine, so the next row is the one whose largest cosine is smallest.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "greedy.h"

namespace desap {

// norms: the inverse norms of x where the caller has them, else null.
Status farthest_points(Context& context, ConstMatrix x, const float* norms, const int32_t* seeds, int64_t seed_count, int64_t count,
                       int32_t* picked) {
  const Kernels& kernels = *context.kernels;
  Scratch scratch(context.arena);
  float* own_norms = scratch.floats(norms ? 0 : x.rows);
  float* apart = scratch.floats(x.rows);  // minus the largest cosine with a chosen row
  uint8_t* chosen = scratch.bytes(x.rows);
  Likely likely(scratch, x.rows);
  if (scratch.failed()) return out_of_memory("farthest_points");
  if (!norms) {
    DESAP_TRY(kernels.inverse_norms(context, x, own_norms));
    norms = own_norms;
  }
  std::fill_n(apart, x.rows, INFINITY);
  std::memset(chosen, 0, static_cast<size_t>(x.rows));
  const auto cosines = [&](const int32_t* of, int64_t rows, Matrix y) { return kernels.cosine_rows(context, x, norms, of, rows, y); };
  const auto choose = [&](const float* cosine) {
    for (int64_t i = 0; i < x.rows; i++) apart[i] = std::min(apart[i], -cosine[i]);
  };

  if (count > 0) {
    Scratch seeding(context.arena);
    const int64_t ld = padded_ld(x.rows);
    float* rows = seeding.floats(std::min(seed_count, most_rows_at_once) * ld);
    if (seeding.failed()) return out_of_memory("farthest_points");
    for (int64_t s = 0; s < seed_count; s += most_rows_at_once) {
      const int64_t some = std::min(most_rows_at_once, seed_count - s);
      DESAP_TRY(cosines(seeds + s, some, {rows, some, x.rows, ld}));
      for (int64_t c = 0; c < some; c++) choose(rows + c * ld);
    }
  }
  for (int64_t s = 0; s < seed_count; s++) chosen[seeds[s]] = 1;
  for (int64_t k = 0; k < count; k++) {
    const bool first = k == 0 && seed_count == 0;
    if (first) {
      DESAP_TRY(kernels.closest_others(context, x, norms, apart));
      for (int64_t i = 0; i < x.rows; i++) apart[i] = -apart[i];
    }
    const int64_t j = best_row(apart, chosen, x.rows);
    picked[k] = static_cast<int32_t>(j);
    if (k + 1 < count) {
      const float* row = nullptr;
      DESAP_TRY(likely.row(context, apart, chosen, j, count - k - 2, cosines, &row));
      if (first) std::fill_n(apart, x.rows, INFINITY);
      choose(row);
    }
    chosen[j] = 1;
  }
  return {};
}

Status farthest_points(Context& context, ConstMatrix x, const int32_t* seeds, int64_t seed_count, int64_t count, int32_t* picked) {
  return farthest_points(context, x, nullptr, seeds, seed_count, count, picked);
}

}  // namespace desap
