// The kernels as the textbook has them, in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "../kernels.h"

namespace desap::reference {

using Doubles = std::vector<double>;

// Row-major, without padding.
struct Array {
  Array(int64_t r, int64_t c) : rows(r), cols(c), data(static_cast<size_t>(r * c)) {}
  template <class T>
  Array(const std::vector<T>& x, int64_t r, int64_t c) : rows(r), cols(c), data(x.begin(), x.end()) {}
  double& at(int64_t i, int64_t j) { return data[static_cast<size_t>(i * cols + j)]; }
  double at(int64_t i, int64_t j) const { return data[static_cast<size_t>(i * cols + j)]; }
  int64_t rows, cols;
  Doubles data;
};

inline double dot(const Array& a, int64_t i, const Array& b, int64_t j) {
  double sum = 0;
  for (int64_t k = 0; k < a.cols; k++) sum += a.at(i, k) * b.at(j, k);
  return sum;
}

inline Array layer_norm(const Array& x, const Array& weight, const Array& bias, double epsilon) {
  Array y(x.rows, x.cols);
  for (int64_t i = 0; i < x.rows; i++) {
    double mean = 0, variance = 0;
    for (int64_t j = 0; j < x.cols; j++) mean += x.at(i, j) / static_cast<double>(x.cols);
    for (int64_t j = 0; j < x.cols; j++) variance += std::pow(x.at(i, j) - mean, 2) / static_cast<double>(x.cols);
    for (int64_t j = 0; j < x.cols; j++) {
      y.at(i, j) = (x.at(i, j) - mean) / std::sqrt(variance + epsilon) * weight.at(0, j) + bias.at(0, j);
    }
  }
  return y;
}

inline Array linear(const Array& x, const Array& weight, const Array* bias) {
  Array y(x.rows, weight.rows);
  for (int64_t i = 0; i < x.rows; i++) {
    for (int64_t j = 0; j < weight.rows; j++) y.at(i, j) = dot(x, i, weight, j) + (bias ? bias->at(0, j) : 0);
  }
  return y;
}

inline Array unit_rows(const Array& x) {
  Array y = x;
  for (int64_t i = 0; i < x.rows; i++) {
    const double norm = std::max(std::sqrt(dot(x, i, x, i)), 1e-12);
    for (int64_t j = 0; j < x.cols; j++) y.at(i, j) /= norm;
  }
  return y;
}

inline void softmax(Doubles& x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v - top);
  for (double& v : x) v /= sum;
}

// softmax(Q K^T / sqrt(dh)) of one head, row i.
inline Doubles attention_row(const Array& q, const Array& k, int64_t heads, int64_t head, int64_t i) {
  const int64_t size = q.cols / heads;
  Doubles row(static_cast<size_t>(k.rows));
  for (int64_t j = 0; j < k.rows; j++) {
    double sum = 0;
    for (int64_t d = head * size; d < (head + 1) * size; d++) sum += q.at(i, d) * k.at(j, d);
    row[static_cast<size_t>(j)] = sum / std::sqrt(static_cast<double>(size));
  }
  softmax(row);
  return row;
}

inline Array attention(const Array& q, const Array& k, const Array& v, int64_t heads) {
  Array y(q.rows, q.cols);
  const int64_t size = q.cols / heads;
  for (int64_t h = 0; h < heads; h++) {
    for (int64_t i = 0; i < q.rows; i++) {
      const Doubles row = attention_row(q, k, heads, h, i);
      for (int64_t j = 0; j < k.rows; j++) {
        for (int64_t d = h * size; d < (h + 1) * size; d++) y.at(i, d) += row[static_cast<size_t>(j)] * v.at(j, d);
      }
    }
  }
  return y;
}

inline Doubles saliency(const Array& q, const Array& k, int64_t heads, bool class_token) {
  Doubles mean(static_cast<size_t>(k.rows));
  const int64_t rows = class_token ? 1 : q.rows;
  for (int64_t h = 0; h < heads; h++) {
    for (int64_t i = 0; i < rows; i++) {
      const Doubles row = attention_row(q, k, heads, h, i);
      for (size_t j = 0; j < row.size(); j++) mean[j] += row[j] / static_cast<double>(heads * rows);
    }
  }
  if (class_token) mean.erase(mean.begin());
  return mean;
}

struct Aligned {
  Doubles task;
  Array similarity, visual, text;
  double cancellation;  // how much larger the terms of the scores are than the scores: so much more of their rounding shows
};

inline Aligned align(const Array& visual, const Array& text, const Array& end_of_text, const Array& global, Alignment alignment,
                     double lambda) {
  const int64_t patches = visual.rows, text_tokens = text.rows;
  Aligned r{Doubles(static_cast<size_t>(patches)), Array(patches, text_tokens), Array(patches, text_tokens), Array(patches, text_tokens), 1};
  Doubles alpha, beta;
  const auto clamp = [&](double x) { return alignment == Alignment::fcma_clamped ? std::max(x, 0.0) : x; };
  for (int64_t i = 0; i < patches; i++) alpha.push_back(clamp(dot(visual, i, end_of_text, 0)));
  for (int64_t j = 0; j < text_tokens; j++) beta.push_back(clamp(dot(text, j, global, 0)));
  for (int64_t i = 0; i < patches; i++) {
    for (int64_t j = 0; j < text_tokens; j++) r.similarity.at(i, j) = dot(visual, i, text, j);
  }
  for (int64_t i = 0; i < patches; i++) {
    Doubles row;
    for (int64_t j = 0; j < text_tokens; j++) row.push_back(lambda * beta[static_cast<size_t>(j)] * r.similarity.at(i, j));
    softmax(row);
    for (int64_t j = 0; j < text_tokens; j++) {
      r.visual.at(i, j) = alpha[static_cast<size_t>(i)] * row[static_cast<size_t>(j)] / static_cast<double>(patches);
    }
  }
  for (int64_t j = 0; j < text_tokens; j++) {
    Doubles column;
    for (int64_t i = 0; i < patches; i++) column.push_back(lambda * alpha[static_cast<size_t>(i)] * r.similarity.at(i, j));
    softmax(column);
    for (int64_t i = 0; i < patches; i++) {
      r.text.at(i, j) = beta[static_cast<size_t>(j)] * column[static_cast<size_t>(i)] / static_cast<double>(text_tokens);
    }
  }
  double largest = 0, largest_terms = 0;
  for (int64_t i = 0; i < patches; i++) {
    double& task = r.task[static_cast<size_t>(i)];
    double terms = 0;
    for (int64_t j = 0; j < text_tokens; j++) {
      const double weight = alignment == Alignment::mean ? 1 : r.visual.at(i, j) + r.text.at(i, j);
      const double term = weight * r.similarity.at(i, j) / static_cast<double>(text_tokens);
      task += term;
      terms += std::fabs(term);
    }
    largest = std::max(largest, std::fabs(task));
    largest_terms = std::max(largest_terms, terms);
  }
  if (largest > 0) r.cancellation = largest_terms / largest;
  return r;
}

template <class T>
std::vector<int32_t> top_k(const std::vector<T>& scores, const uint8_t* excluded, int64_t k) {
  std::vector<int32_t> order;
  for (size_t i = 0; i < scores.size(); i++) {
    if (!excluded || !excluded[i]) order.push_back(static_cast<int32_t>(i));
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)]; });
  order.resize(static_cast<size_t>(k));
  std::sort(order.begin(), order.end());
  return order;
}

// The similarity of each row to each centre; a centre's own row is out of reach for the others.
inline Array similarities(const Array& x, const std::vector<int32_t>& kept) {
  const Array unit = unit_rows(x);
  Array s(x.rows, static_cast<int64_t>(kept.size()));
  for (int64_t i = 0; i < s.rows; i++) {
    for (int64_t c = 0; c < s.cols; c++) {
      const int32_t centre = kept[static_cast<size_t>(c)];
      s.at(i, c) = centre == i ? 2 : dot(unit, i, unit, centre);
    }
  }
  return s;
}

inline Array means(const Array& x, const std::vector<int32_t>& assignment, int64_t k) {
  Array mean(k, x.cols);
  std::vector<int> counts(static_cast<size_t>(k));
  for (int64_t i = 0; i < x.rows; i++) {
    const int32_t c = assignment[static_cast<size_t>(i)];
    counts[static_cast<size_t>(c)]++;
    for (int64_t d = 0; d < x.cols; d++) mean.at(c, d) += x.at(i, d);
  }
  for (int64_t c = 0; c < k; c++) {
    for (int64_t d = 0; d < x.cols; d++) mean.at(c, d) /= counts[static_cast<size_t>(c)];
  }
  return mean;
}

}  // namespace desap::reference
