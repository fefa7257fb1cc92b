#include "fold.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "in_parallel.h"

namespace desap {
namespace {

using Doubles = std::vector<double>;
using View = MatrixOf<double>;
using ConstView = MatrixOf<const double>;

// Two lanes, which every processor's baseline has.
typedef double Pair __attribute__((vector_size(16), may_alias));

constexpr int64_t lanes = 2;
constexpr int64_t panel_size = 32;  // reflections that are applied together
constexpr int64_t group_size = 16;  // rows that take all panels in turn, and stay in the second-level cache meanwhile

constexpr int64_t round_down(int64_t column) { return column / lanes * lanes; }

// A matrix of zeros, whose rows are padded with zeros to whole Pairs, and by a cache line more, so that a column does not fall
// on a few sets of the caches.
struct Array {
  Array(int64_t rows_, int64_t cols_)
      : rows(rows_), cols(cols_), padded(round_down(cols_ + lanes - 1)), data(static_cast<size_t>(rows * ld())) {}
  int64_t ld() const { return padded + 8; }
  double* row(int64_t i) { return data.data() + i * ld(); }
  const double* row(int64_t i) const { return data.data() + i * ld(); }
  // Rows [first, first + count), columns from `col` to the end, as whole Pairs: from a column before, where `col` is odd.
  View part(int64_t first, int64_t count, int64_t col) {
    return {row(first) + round_down(col), count, padded - round_down(col), ld()};
  }
  ConstView part(int64_t first, int64_t count, int64_t col) const { return const_cast<Array*>(this)->part(first, count, col); }
  int64_t rows, cols, padded;
  Doubles data;
};

// --------------------------------------------------------------------------------------------------------- products
// Both read whole Pairs and keep eight sums in registers; all else here is made of them.

template <int R, int C>
void dot_tile(ConstView x, ConstView v, double* z, int64_t z_ld) {
  Pair sums[R][C] = {};
  for (int64_t c = 0; c < x.cols; c += lanes) {
    for (int i = 0; i < R; i++) {
      const Pair element = *reinterpret_cast<const Pair*>(x.row(i) + c);
      for (int j = 0; j < C; j++) sums[i][j] += element * *reinterpret_cast<const Pair*>(v.row(j) + c);
    }
  }
  for (int i = 0; i < R; i++) {
    for (int j = 0; j < C; j++) z[i * z_ld + j] = sums[i][j][0] + sums[i][j][1];
  }
}

template <int R>
void dot_rows(ConstView x, ConstView v, double* z, int64_t z_ld) {
  constexpr int64_t tile = 8 / R;
  int64_t j = 0;
  for (; j + tile <= v.rows; j += tile) dot_tile<R, tile>(x, {v.row(j), tile, v.cols, v.ld}, z + j, z_ld);
  for (; j < v.rows; j++) dot_tile<R, 1>(x, {v.row(j), 1, v.cols, v.ld}, z + j, z_ld);
}

// Z = X V^T
void multiply(ConstView x, ConstView v, double* z, int64_t z_ld) {
  int64_t i = 0;
  for (; i + 2 <= x.rows; i += 2) dot_rows<2>({x.row(i), 2, x.cols, x.ld}, v, z + i * z_ld, z_ld);
  for (; i < x.rows; i++) dot_rows<1>({x.row(i), 1, x.cols, x.ld}, v, z + i * z_ld, z_ld);
}

template <int R, int J>
void add_tile(double scale, const double* z, int64_t z_ld, ConstView v, View x) {
  Pair factors[R][J];
  for (int i = 0; i < R; i++) {
    for (int j = 0; j < J; j++) factors[i][j] = Pair{scale, scale} * z[i * z_ld + j];
  }
  for (int64_t c = 0; c < x.cols; c += lanes) {
    Pair elements[J];
    for (int j = 0; j < J; j++) elements[j] = *reinterpret_cast<const Pair*>(v.row(j) + c);
    for (int i = 0; i < R; i++) {
      Pair& target = *reinterpret_cast<Pair*>(x.row(i) + c);
      Pair sum = target;
      for (int j = 0; j < J; j++) sum += factors[i][j] * elements[j];
      target = sum;
    }
  }
}

template <int R>
void add_rows(double scale, const double* z, int64_t z_ld, ConstView v, View x) {
  constexpr int64_t tile = R == 1 ? 8 : 4;
  int64_t j = 0;
  for (; j + tile <= v.rows; j += tile) add_tile<R, tile>(scale, z + j, z_ld, {v.row(j), tile, v.cols, v.ld}, x);
  for (; j < v.rows; j++) add_tile<R, 1>(scale, z + j, z_ld, {v.row(j), 1, v.cols, v.ld}, x);
}

// X += scale Z V
void add_product(double scale, const double* z, int64_t z_ld, ConstView v, View x) {
  constexpr int64_t block = 256;
  for (int64_t c = 0; c < x.cols; c += block) {
    const int64_t cols = std::min(block, x.cols - c);
    const ConstView w{v.data + c, v.rows, cols, v.ld};
    int64_t i = 0;
    for (; i + 4 <= x.rows; i += 4) add_rows<4>(scale, z + i * z_ld, z_ld, w, {x.row(i) + c, 4, cols, x.ld});
    for (; i < x.rows; i++) add_rows<1>(scale, z + i * z_ld, z_ld, w, {x.row(i) + c, 1, cols, x.ld});
  }
}

// body(first, count) for groups of the rows [begin, end).
template <class Body>
void for_groups(int64_t begin, int64_t end, int threads, const Body& body) {
  in_parallel((end - begin + group_size - 1) / group_size, threads, [&](int64_t group) {
    const int64_t first = begin + group * group_size;
    body(first, std::min(group_size, end - first));
  });
}

// ------------------------------------------------------------------------------------------------------ reflections

// Replaces x by u, so that the reflection I - u u^T takes x to (alpha, 0, .., 0); returns alpha. |u|^2 = 2, or u = 0 where
// there is nothing to remove.
double make_reflector(double* x, int64_t size) {
  constexpr double nothing = std::numeric_limits<double>::min() / std::numeric_limits<double>::epsilon();
  const double first = x[0];
  double rest = 0;
  for (int64_t i = 1; i < size; i++) rest += x[i] * x[i];
  if (rest <= nothing) {
    std::fill_n(x, size, 0.0);
    return first;
  }
  const double alpha = -std::copysign(std::sqrt(first * first + rest), first);
  x[0] = first - alpha;
  const double factor = std::sqrt(2 / (x[0] * x[0] + rest));
  for (int64_t i = 0; i < size; i++) x[i] *= factor;
  return alpha;
}

// M = L_0 L_1 .. B .. R_1 R_0 with the reflections L_k by row k of `left`, which is 0 before column k, and R_k by row k of
// `right`, which is 0 before column k + 1. B is upper bidiagonal.
struct Bidiagonal {
  Bidiagonal(int64_t rows, int64_t cols)
      : steps(std::min(rows, cols)), left(steps, rows), right(steps, cols), diagonal(static_cast<size_t>(steps)),
        superdiagonal(static_cast<size_t>(steps)) {}
  int64_t steps;
  Array left, right;
  Doubles diagonal, superdiagonal;
};

// Golub and Kahan's bidiagonalisation. A reflection changes M by a product of two vectors, M - u (M^T u)^T from the left and
// M - (M v) v^T from the right. A panel of steps collects them, so that the matrix is M - tall^T wide, before it subtracts them
// at once: half of the work becomes a matrix product that way, the other half is the M^T u and M v. Overwrites M.
Bidiagonal bidiagonalize(Array& m, int threads) {
  Bidiagonal b(m.rows, m.cols);
  for (int64_t begin = 0; begin < b.steps; begin += panel_size) {
    const int64_t end = std::min(begin + panel_size, b.steps);
    Array tall(2 * panel_size, m.rows), wide(2 * panel_size, m.cols);
    int64_t count = 0;
    double factors[2 * panel_size];
    // The next row of a panel, from column `col` on, loses `factors` times the rows before it.
    const auto subtract = [&](Array& panel, int64_t col) {
      add_product(-1, factors, 0, panel.part(0, count, col), panel.part(count, 1, col));
      std::fill_n(panel.row(count), col, 0.0);
    };
    for (int64_t k = begin; k < end; k++) {
      double* u = tall.row(count);  // from column k of the matrix
      for (int64_t i = k; i < m.rows; i++) u[i] = m.row(i)[k];
      for (int64_t j = 0; j < count; j++) factors[j] = wide.row(j)[k];
      subtract(tall, k);
      b.diagonal[static_cast<size_t>(k)] = make_reflector(u + k, m.rows - k);
      std::copy_n(u, m.rows, b.left.row(k));
      // the matrix^T u
      add_product(1, u + k, 0, m.part(k, m.rows - k, k + 1), wide.part(count, 1, k + 1));
      multiply(tall.part(count, 1, k), tall.part(0, count, k), factors, 0);
      subtract(wide, k + 1);
      count++;

      double* v = wide.row(count);  // from row k
      std::copy(m.row(k) + k + 1, m.row(k) + m.cols, v + k + 1);
      for (int64_t j = 0; j < count; j++) factors[j] = tall.row(j)[k];
      subtract(wide, k + 1);
      if (k + 1 < m.cols) b.superdiagonal[static_cast<size_t>(k)] = make_reflector(v + k + 1, m.cols - k - 1);
      std::copy_n(v, m.cols, b.right.row(k));
      // the matrix v
      multiply(wide.part(count, 1, k + 1), m.part(k + 1, m.rows - k - 1, k + 1), tall.row(count) + k + 1, 0);
      multiply(wide.part(count, 1, k + 1), wide.part(0, count, k + 1), factors, 0);
      subtract(tall, k + 1);
      count++;
    }
    for_groups(end, m.rows, threads, [&](int64_t first, int64_t rows) {
      double z[group_size][2 * panel_size];
      for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < count; j++) z[i][j] = tall.row(j)[first + i];
      }
      add_product(-1, z[0], 2 * panel_size, wide.part(0, count, end), m.part(first, rows, end));
    });
  }
  return b;
}

enum class Order { forward, backward };

// X <- X H_0 H_1 .. (forward) or X .. H_1 H_0 (backward), with the reflections H_k by row k of `reflectors`, 0 before column k.
// The product of a panel W of them, in rows, is I - W^T T W (forward; backward T^T), and as |u|^2 = 2, the inverse of T is unit
// upper triangular with the products u_i . u_j above the diagonal. So Z = X W^T is multiplied by T by substitution.
void reflect_rows(Array& x, const Array& reflectors, Order order, int threads) {
  struct Panel {
    int64_t begin, count;
    double inner[panel_size][panel_size];  // u_i . u_j
  };
  std::vector<Panel> panels(static_cast<size_t>((reflectors.rows + panel_size - 1) / panel_size));
  in_parallel(static_cast<int64_t>(panels.size()), threads, [&](int64_t i) {
    const int64_t begin = i * panel_size, count = std::min(panel_size, reflectors.rows - begin);
    Panel& panel = panels[static_cast<size_t>(order == Order::forward ? i : static_cast<int64_t>(panels.size()) - 1 - i)];
    panel.begin = begin;
    panel.count = count;
    const ConstView w = reflectors.part(begin, count, begin);
    multiply(w, w, panel.inner[0], panel_size);
  });
  for_groups(0, x.rows, threads, [&](int64_t first, int64_t rows) {
    double z[group_size][panel_size];
    for (const Panel& panel : panels) {
      const ConstView w = reflectors.part(panel.begin, panel.count, panel.begin);
      const View y = x.part(first, rows, panel.begin);
      multiply(y, w, z[0], panel_size);
      for (int64_t i = 0; i < rows; i++) {
        if (order == Order::forward) {
          for (int64_t j = 0; j < w.rows; j++) {
            for (int64_t l = j + 1; l < w.rows; l++) z[i][l] -= z[i][j] * panel.inner[j][l];
          }
        } else {
          for (int64_t j = w.rows - 1; j > 0; j--) {
            for (int64_t l = 0; l < j; l++) z[i][l] -= z[i][j] * panel.inner[j][l];
          }
        }
      }
      add_product(-1, z[0], panel_size, w, y);
    }
  });
}

}  // namespace

FoldedLayer fold_norm(const float* weight, const float* bias, const float* gamma, const float* beta, int64_t out, int64_t in) {
  FoldedLayer folded{Doubles(static_cast<size_t>(out * in)), Doubles(static_cast<size_t>(out))};
  for (int64_t i = 0; i < out; i++) {
    double sum = bias ? bias[i] : 0;
    for (int64_t j = 0; j < in; j++) {
      const double element = weight[i * in + j];
      folded.weight[static_cast<size_t>(i * in + j)] = element * gamma[j];
      if (beta) sum += element * beta[j];
    }
    folded.bias[static_cast<size_t>(i)] = sum;
  }
  return folded;
}

void centre_rows(MatrixOf<double> x) {
  for (int64_t i = 0; i < x.rows; i++) {
    double* row = x.row(i);
    double mean = 0;
    for (int64_t j = 0; j < x.cols; j++) mean += row[j] / static_cast<double>(x.cols);
    for (int64_t j = 0; j < x.cols; j++) row[j] -= mean;
  }
}

RotatedReadOut rotate_read_out(const HeadConfig& config, const HeadWeights& weights, int threads) {
  const int64_t width = config.width, outputs = config.projection_dim;
  const FoldedLayer projection =
      fold_norm(weights.visual_projection, nullptr, weights.post_norm_weight, weights.post_norm_bias, outputs, width);
  Array centred(outputs, width);  // W_vis diag(gamma) C
  for (int64_t e = 0; e < outputs; e++) std::copy_n(projection.weight.data() + e * width, width, centred.row(e));
  centre_rows({centred.row(0), outputs, width, centred.ld()});
  const Bidiagonal b = bidiagonalize(centred, threads);

  Array out(width + 1, width);  // (C W_o)^T, then b_o^T C; the reflections make it (V^T C W_o)^T
  for (int64_t i = 0; i < width; i++) {
    for (int64_t j = 0; j < width; j++) out.row(j)[i] = weights.out_weight[i * width + j];
  }
  std::copy_n(weights.out_bias, width, out.row(width));
  centre_rows({out.row(0), width + 1, width, out.ld()});
  reflect_rows(out, b.right, Order::forward, threads);

  Array rotation(outputs, outputs);  // U^T
  for (int64_t e = 0; e < outputs; e++) rotation.row(e)[e] = 1;
  reflect_rows(rotation, b.left, Order::backward, threads);

  RotatedReadOut result;
  result.weight.resize(static_cast<size_t>(width * width));
  for (int64_t j = 0; j < width; j++) {
    for (int64_t i = 0; i < width; i++) result.weight[static_cast<size_t>(i * width + j)] = static_cast<float>(out.row(j)[i]);
  }
  result.bias.assign(out.row(width), out.row(width) + width);
  result.diagonal.assign(b.diagonal.begin(), b.diagonal.end());
  result.superdiagonal.assign(b.superdiagonal.begin(), b.superdiagonal.end());
  result.diagonal.resize(static_cast<size_t>(outputs));
  result.superdiagonal.resize(static_cast<size_t>(outputs));
  for (int64_t e = 0; e < outputs; e++) {
    const double* row = rotation.row(e);
    result.shift.push_back(static_cast<float>(std::inner_product(row, row + outputs, projection.bias.begin(), 0.0)));
    result.rotation.insert(result.rotation.end(), row, row + outputs);
  }
  return result;
}

}  // namespace desap
