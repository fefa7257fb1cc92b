// What the greedy selections share: which row is next, and which will be.
#pragma once

#include <algorithm>

#include "dispatch.h"

namespace desap {

// The row of the largest score that is not chosen; equal scores: the lowest. -1: all are.
inline int64_t best_row(const float* scores, const uint8_t* chosen, int64_t size) {
  int64_t best = -1;
  for (int64_t i = 0; i < size; i++) {
    if (!chosen[i] && (best < 0 || scores[i] > scores[best])) best = i;
  }
  return best;
}

// The rows that are likely to be next: those of the largest scores now. A pick is nearly always one of them, and many rows of
// products at once take little longer than one. On a miss others are computed. So neither holds all P x P, nor walks through x for
// each pick.
class Likely {
 public:
  // Room for the rows, [most_rows_at_once, size].
  Likely(Scratch& scratch, int64_t size) : ld_(padded_ld(size)), size_(size), rows_(scratch.floats(most_rows_at_once * ld_)) {}

  // The row of pick j; `left` picks follow whose rows are needed. compute(of, count, Matrix) where it is not there.
  template <class Compute>
  Status row(Context& context, const float* scores, const uint8_t* chosen, int64_t j, int64_t left, const Compute& compute, const float** row) {
    const auto place = [&] { return std::find(of_, of_ + count_, static_cast<int32_t>(j)) - of_; };
    int64_t at = place();
    if (at == count_) {
      const int64_t candidates = std::count(chosen, chosen + size_, 0);
      count_ = std::min({most_rows_at_once, left + 1, candidates});
      DESAP_TRY(top_k(context, scores, chosen, size_, count_, of_));
      DESAP_TRY(compute(of_, count_, Matrix{rows_, count_, size_, ld_}));
      at = place();
    }
    *row = rows_ + at * ld_;
    return {};
  }

 private:
  const int64_t ld_, size_;
  float* const rows_;
  int32_t of_[most_rows_at_once];
  int64_t count_ = 0;
};

}  // namespace desap
