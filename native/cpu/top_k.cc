// The k largest scores as integers: a float maps to an unsigned whose order is the same, the index breaks ties, and a
// selection (introselect, linear on average) puts the k first in front.
#include <algorithm>
#include <cstring>

#include "dispatch.h"

namespace desap {
namespace {

// Ascending where scores descend. -0 counts as +0.
uint32_t descending(float score) {
  if (score == 0) score = 0;
  uint32_t word;
  std::memcpy(&word, &score, sizeof word);
  const uint32_t ascending = word & 0x80000000u ? ~word : word | 0x80000000u;
  return ~ascending;
}

}  // namespace

Status top_k(Context& context, const float* scores, const uint8_t* excluded, int64_t size, int64_t k, int32_t* indices) {
  Scratch scratch(context.arena);
  uint64_t* keys = scratch.words(size);
  if (scratch.failed()) return out_of_memory("top_k");
  int64_t count = 0;
  for (int64_t i = 0; i < size; i++) {
    if (excluded && excluded[i]) continue;
    if (scores[i] != scores[i]) return {Code::not_finite, "scores", i};
    keys[count++] = uint64_t{descending(scores[i])} << 32 | static_cast<uint64_t>(i);
  }
  if (k < count) std::nth_element(keys, keys + k, keys + count);
  for (int64_t i = 0; i < k; i++) indices[i] = static_cast<int32_t>(keys[i] & 0xffffffffu);
  std::sort(indices, indices + k);
  return {};
}

}  // namespace desap
