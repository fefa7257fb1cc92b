// means[u] = mean of scores[i] over the entries with unit[i] = u. Sums in ascending order of i.
#include <algorithm>

#include "dispatch.h"

namespace desap {

Status pool(Context& context, const float* scores, const int32_t* unit, int64_t size, int64_t units, float* means) {
  Scratch scratch(context.arena);
  int32_t* counts = scratch.ints(units);
  if (scratch.failed()) return out_of_memory("pool");
  std::fill_n(counts, units, 0);
  std::fill_n(means, units, 0.0f);
  for (int64_t i = 0; i < size; i++) {
    means[unit[i]] += scores[i];
    counts[unit[i]]++;
  }
  for (int64_t u = 0; u < units; u++) means[u] /= static_cast<float>(counts[u]);
  return {};
}

}  // namespace desap
