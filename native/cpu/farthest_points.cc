// Farthest points over rows of cosines. The distance is 1 - cosine, so a row is as far from others as minus its largest cosine with them
// is large: `apart`.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "greedy.h"

namespace desap {
namespace {

// The rows of x and what makes them unit rows.
struct Rows {
  Context& context;
  ConstMatrix x;
  const float* norms;

  Status operator()(const int32_t* of, int64_t count, Matrix cosines) const {
    return context.kernels->cosine_rows(context, x, norms, of, count, cosines);
  }
};

// apart[i] = min(apart[i], -cosine[i]).
void approach(const float* cosine, int64_t size, float* apart) {
  for (int64_t i = 0; i < size; i++) apart[i] = std::min(apart[i], -cosine[i]);
}

// Without seeds all pairs count for the first row. Up to so many rows, 4 MB, the cosines of each pair are computed once and kept; beyond,
// the search below and rows of likely picks take less.
constexpr int64_t most_rows_of_all = 1024;

// The cosines of all unit rows with each other; of a row with itself: -infinity.
Status all_cosines(const Rows& unit, Matrix cosines) {
  const ConstMatrix& x = unit.x;
  int32_t first[most_rows_at_once];
  std::iota(first, first + most_rows_at_once, 0);
  for (int64_t begin = 0; begin < x.rows; begin += most_rows_at_once) {
    const int64_t rest = x.rows - begin, count = std::min(most_rows_at_once, rest);
    const Rows from_begin{unit.context, {x.row(begin), rest, x.cols, x.ld}, unit.norms + begin};
    DESAP_TRY(from_begin(first, count, {cosines.row(begin) + begin, count, rest, cosines.ld}));
    for (int64_t i = begin; i < begin + count; i++) {
      cosines.row(i)[i] = -INFINITY;
      for (int64_t j = i + 1; j < x.rows; j++) cosines.row(j)[i] = cosines.row(i)[j];
    }
  }
  return {};
}

Status farthest_of_few(const Rows& unit, int64_t count, int32_t* picked) {
  const int64_t size = unit.x.rows, ld = padded_ld(size);
  Scratch scratch(unit.context.arena);
  const Matrix cosines{scratch.floats(size * ld), size, size, ld};
  float* apart = scratch.floats(size);
  uint8_t* chosen = scratch.bytes(size);
  if (scratch.failed()) return out_of_memory("farthest_points");
  DESAP_TRY(all_cosines(unit, cosines));
  for (int64_t i = 0; i < size; i++) apart[i] = -*std::max_element(cosines.row(i), cosines.row(i) + size);
  std::fill_n(chosen, size, uint8_t{0});
  for (int64_t k = 0; k < count; k++) {
    const int64_t j = best_row(apart, chosen, size);
    if (k == 0) std::fill_n(apart, size, INFINITY);
    approach(cosines.row(j), size, apart);
    picked[k] = static_cast<int32_t>(j);
    chosen[j] = 1;
  }
  return {};
}

// The row whose nearest other row is farthest. Cosines with a few rows bound every row's `apart` from above, and settle those few; the
// next few are those that seem farthest. It ends where no bound is above the best that is settled: long before all pairs where rows have
// rows alike. Unit rows: then cos(i, j) and cos(j, i) are the same bits, and two rows that are each other's nearest are equally far.
Status farthest_of_all(const Rows& unit, int32_t* picked) {
  const int64_t size = unit.x.rows, ld = padded_ld(size);
  Scratch scratch(unit.context.arena);
  float* apart = scratch.floats(size);
  float* cosines = scratch.floats(most_rows_at_once * ld);
  uint8_t* settled = scratch.bytes(size);
  if (scratch.failed()) return out_of_memory("farthest_points");
  std::fill_n(apart, size, INFINITY);
  std::fill_n(settled, size, uint8_t{0});
  int64_t best = -1;
  for (int64_t left = size; left > 0;) {
    const int64_t next = best_row(apart, settled, size);
    if (best >= 0 && (apart[next] < apart[best] || (apart[next] == apart[best] && next > best))) break;
    int32_t of[most_rows_at_once];
    const int64_t count = std::min(most_rows_at_once, left);
    DESAP_TRY(top_k(unit.context, apart, settled, size, count, of));
    DESAP_TRY(unit(of, count, {cosines, count, size, ld}));
    for (int64_t c = 0; c < count; c++) {
      float* cosine = cosines + c * ld;
      cosine[of[c]] = -INFINITY;  // itself
      approach(cosine, size, apart);
      apart[of[c]] = -*std::max_element(cosine, cosine + size);
      settled[of[c]] = 1;
    }
    left -= count;
    for (int64_t c = 0; c < count; c++) {
      const int64_t i = of[c];
      if (best < 0 || apart[i] > apart[best] || (apart[i] == apart[best] && i < best)) best = i;
    }
  }
  *picked = static_cast<int32_t>(best);
  return {};
}

Status farthest_from_seeds(const Rows& rows, const int32_t* seeds, int64_t seed_count, int64_t count, int32_t* picked) {
  Context& context = rows.context;
  const int64_t size = rows.x.rows, ld = padded_ld(size);
  Scratch scratch(context.arena);
  float* apart = scratch.floats(size);
  float* of_seeds = scratch.floats(std::min(most_rows_at_once, seed_count) * ld);
  uint8_t* chosen = scratch.bytes(size);
  Likely likely(scratch, size);
  if (scratch.failed()) return out_of_memory("farthest_points");
  std::fill_n(apart, size, INFINITY);
  std::fill_n(chosen, size, uint8_t{0});
  for (int64_t s = 0; s < seed_count; s += most_rows_at_once) {
    const int64_t some = std::min(most_rows_at_once, seed_count - s);
    DESAP_TRY(rows(seeds + s, some, {of_seeds, some, size, ld}));
    for (int64_t c = 0; c < some; c++) approach(of_seeds + c * ld, size, apart);
  }
  for (int64_t s = 0; s < seed_count; s++) chosen[seeds[s]] = 1;
  for (int64_t k = 0; k < count; k++) {
    const int64_t j = best_row(apart, chosen, size);
    if (k + 1 < count) {
      const float* cosine = nullptr;
      DESAP_TRY(likely.row(context, apart, chosen, j, count - k - 1, rows, &cosine));
      approach(cosine, size, apart);
    }
    picked[k] = static_cast<int32_t>(j);
    chosen[j] = 1;
  }
  return {};
}

}  // namespace

Status most_distant(Context& context, ConstMatrix x, const float* norms, int32_t* picked) {
  constexpr int64_t part = 16;
  Scratch scratch(context.arena);
  float* sums = scratch.floats(x.cols);  // of the unit rows
  if (scratch.failed()) return out_of_memory("farthest_points");
  for (int64_t c = 0; c < x.cols; c += part) {
    const int64_t columns = std::min(part, x.cols - c);
    double sum[part] = {};
    for (int64_t i = 0; i < x.rows; i++) {
      for (int64_t k = 0; k < columns; k++) sum[k] += static_cast<double>(x.row(i)[c + k]) * norms[i];
    }
    std::copy_n(sum, columns, sums + c);
  }
  double least = 0;
  for (int64_t i = 0; i < x.rows; i++) {
    double together = 0;
    for (int64_t c = 0; c < x.cols; c++) together += static_cast<double>(x.row(i)[c]) * sums[c];
    together *= norms[i];
    if (i > 0 && together >= least) continue;
    least = together;
    *picked = static_cast<int32_t>(i);
  }
  return {};
}

Status farthest_points(Context& context, ConstMatrix x, const float* norms, const int32_t* seeds, int64_t seed_count, int64_t count,
                       int32_t* picked) {
  if (count == 0) return {};
  if (seed_count > 0) return farthest_from_seeds({context, x, norms}, seeds, seed_count, count, picked);
  Scratch scratch(context.arena);
  const Matrix unit{scratch.floats(x.rows * padded_ld(x.cols)), x.rows, x.cols, padded_ld(x.cols)};
  float* ones = scratch.floats(x.rows);
  if (scratch.failed()) return out_of_memory("farthest_points");
  std::fill_n(ones, x.rows, 1.0f);
  DESAP_TRY(unit_rows(context, x, unit));
  if (x.rows <= most_rows_of_all) return farthest_of_few({context, unit, ones}, count, picked);
  DESAP_TRY(farthest_of_all({context, unit, ones}, picked));
  return farthest_from_seeds({context, unit, ones}, picked, 1, count - 1, picked + 1);
}

Status farthest_points(Context& context, ConstMatrix x, const int32_t* seeds, int64_t seed_count, int64_t count, int32_t* picked) {
  Scratch scratch(context.arena);
  float* norms = scratch.floats(x.rows);
  if (scratch.failed()) return out_of_memory("farthest_points");
  DESAP_TRY(context.kernels->inverse_norms(context, x, norms));
  return farthest_points(context, x, norms, seeds, seed_count, count, picked);
}

}  // namespace desap
