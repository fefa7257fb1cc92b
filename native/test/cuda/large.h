// Results too large to check whole: a few of their rows.
#pragma once

#include <algorithm>

#include "../harness.h"

namespace desap::test {

// A few of the rows, the first and the last among them.
inline std::vector<int64_t> sample(int64_t rows, Random& random) {
  std::vector<int64_t> list = {0, rows - 1};
  while (static_cast<int64_t>(list.size()) < std::min<int64_t>(rows, 24)) list.push_back(random.below(rows));
  return list;
}

inline Floats rows_of(const Floats& x, int64_t cols, const std::vector<int64_t>& rows) {
  Floats part;
  for (int64_t i : rows) part.insert(part.end(), x.begin() + i * cols, x.begin() + (i + 1) * cols);
  return part;
}

inline std::string text_of(int64_t a, int64_t b) { return std::to_string(a) + " x " + std::to_string(b); }

}  // namespace desap::test
