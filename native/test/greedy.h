// The greedy selections in float64, and the rows that they are given.
#pragma once

#include <algorithm>

#include "kernel_test.h"

namespace desap::reference {

inline int32_t best_row(const std::vector<double>& scores, const std::vector<uint8_t>& chosen) {
  int32_t best = -1;
  for (size_t i = 0; i < scores.size(); i++) {
    if (!chosen[i] && (best < 0 || scores[i] > scores[static_cast<size_t>(best)])) best = static_cast<int32_t>(i);
  }
  return best;
}

inline std::vector<int32_t> farthest_points(const Array& x, const std::vector<int32_t>& seeds, int64_t count) {
  const Array unit = unit_rows(x);
  const size_t size = static_cast<size_t>(x.rows);
  std::vector<double> apart(size, HUGE_VAL);
  std::vector<uint8_t> chosen(size);
  const auto choose = [&](int32_t j) {
    chosen[static_cast<size_t>(j)] = 1;
    for (int64_t i = 0; i < x.rows; i++) apart[static_cast<size_t>(i)] = std::min(apart[static_cast<size_t>(i)], 1 - dot(unit, i, unit, j));
  };
  for (int32_t seed : seeds) choose(seed);
  std::vector<int32_t> picked;
  for (int64_t k = 0; k < count; k++) {
    std::vector<double> others;
    if (k == 0 && seeds.empty()) {
      others.assign(size, HUGE_VAL);
      for (int64_t i = 0; i < x.rows; i++) {
        for (int64_t j = 0; j < x.rows; j++) {
          if (i != j) others[static_cast<size_t>(i)] = std::min(others[static_cast<size_t>(i)], 1 - dot(unit, i, unit, j));
        }
      }
    }
    picked.push_back(best_row(others.empty() ? apart : others, chosen));
    choose(picked.back());
  }
  return picked;
}

// The row of the largest sum of distances.
inline int32_t most_distant(const Array& x) {
  const Array unit = unit_rows(x);
  std::vector<double> apart(static_cast<size_t>(x.rows));
  for (int64_t i = 0; i < x.rows; i++) {
    for (int64_t j = 0; j < x.rows; j++) apart[static_cast<size_t>(i)] += 1 - dot(unit, i, unit, j);
  }
  return best_row(apart, std::vector<uint8_t>(apart.size()));
}

inline std::vector<int32_t> dpp(const Array& x, const std::vector<float>& relevance, double blend, int64_t count) {
  const Array unit = unit_rows(x);
  const size_t size = static_cast<size_t>(x.rows);
  std::vector<double> gains, squares;
  for (int64_t i = 0; i < x.rows; i++) {
    const double g = relevance[static_cast<size_t>(i)];
    squares.push_back(g * g);
    gains.push_back(dot(x, i, x, i) > 1e-24 ? 1 - blend + blend * g * g : 0);
  }
  const double least = 1e-5 * *std::max_element(gains.begin(), gains.end());
  std::vector<uint8_t> chosen(size);
  std::vector<std::vector<double>> factors;
  std::vector<int32_t> picked;
  for (int64_t k = 0; k < count; k++) {
    int32_t j = best_row(gains, chosen);
    const double gain = gains[static_cast<size_t>(j)];
    if (gain > least) {
      std::vector<double> factor;
      for (size_t i = 0; i < size; i++) {
        double rest = (1 - blend + blend * relevance[i] * double{relevance[static_cast<size_t>(j)]}) * dot(unit, static_cast<int64_t>(i), unit, j);
        for (const std::vector<double>& c : factors) rest -= c[static_cast<size_t>(j)] * c[i];
        factor.push_back(rest / std::sqrt(gain));
        gains[i] -= factor.back() * factor.back();
      }
      factors.push_back(factor);
    } else {
      j = best_row(squares, chosen);
    }
    chosen[static_cast<size_t>(j)] = 1;
    picked.push_back(j);
  }
  return picked;
}

}  // namespace desap::reference

namespace desap::test {

// Rows along the axes, whose cosines are exact: each 1, -1 or 0; 0 for a zero row. Many of them are equal.
inline Floats axes(int64_t rows, int64_t cols, uint64_t seed) {
  Random random(seed);
  Floats x(static_cast<size_t>(rows * cols));
  for (int64_t i = 0; i < rows; i++) {
    const int64_t axis = random.below(static_cast<int>(cols) + 1) - 1;
    if (axis >= 0) x[static_cast<size_t>(i * cols + axis)] = random.below(2) ? 4.0f : -0.5f;
  }
  return x;
}

}  // namespace desap::test
