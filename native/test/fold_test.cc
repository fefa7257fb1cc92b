// The folded weights against the formulas that they stand for, in float64. The results are float32, and what is compared
// with them differs by their rounding, no more: 3e-7 of the largest value.
#include "../fold.h"

#include "random_head.h"
#include "reference.h"

namespace desap::test {
namespace {

using reference::Array;
using reference::dot;

constexpr double rounding = 3e-7;

RandomWeights random_weights(int64_t width, int64_t embedding) {
  return RandomWeights({1, width, 1, embedding, true, 1, 1}, static_cast<uint64_t>(width * 1000 + embedding));
}

RotatedReadOut rotate(const RandomWeights& w, int threads = 1) { return rotate_read_out(w.config, w.weights(), threads); }

void check_error(const Array& actual, const Array& expected, double tolerance, const std::string& what) {
  double largest = 0, error = 0;
  for (size_t i = 0; i < expected.data.size(); i++) {
    largest = std::fmax(largest, std::fabs(expected.data[i]));
    const double e = std::fabs(actual.data[i] - expected.data[i]);
    if (!(e <= error)) error = e;
  }
  check(error <= tolerance * largest, what + ": error " + std::to_string(error / largest / tolerance) + " of tolerance");
}

// X Y^T
Array products(const Array& x, const Array& y) { return reference::linear(x, y, nullptr); }

// Random contexts through the read-out as written and as rotated, and cosines with random text.
void check_read_out(const RandomWeights& w, const RotatedReadOut& r, const std::string& what) {
  const int64_t width = w.config.width, outputs = w.config.projection_dim, rows = 5;
  Random random(7);
  const Array context(random.floats(rows * width), rows, width), text(random.floats(rows * outputs), rows, outputs);
  const Array rotation(r.rotation, outputs, outputs);

  Array identity(outputs, outputs);
  for (int64_t e = 0; e < outputs; e++) identity.at(e, e) = 1;
  check_error(products(rotation, rotation), identity, rounding, what + ": rotation is orthogonal");

  const Array out_bias(w.out_bias, 1, width), bias(r.bias, 1, width);
  Array y = reference::linear(context, Array(w.out, width, width), &out_bias);
  centre_rows({y.data.data(), rows, width, width});
  const Array rotated = reference::linear(context, Array(r.weight, width, width), &bias);
  check_error(products(rotated, rotated), products(y, y), rounding, what + ": products of y");

  Array normal(rows, width), terms(rows, outputs);
  for (int64_t i = 0; i < rows; i++) {
    const double rstd = 1 / std::sqrt(dot(y, i, y, i) / static_cast<double>(width) + static_cast<double>(w.config.epsilon));
    for (int64_t j = 0; j < width; j++) {
      const size_t c = static_cast<size_t>(j);
      normal.at(i, j) = rstd * y.at(i, j) * w.post_weight[c] + w.post_bias[c];
    }
    for (int64_t e = 0; e < outputs; e++) {
      const size_t k = static_cast<size_t>(e);
      const double first = e < width ? rotated.at(i, e) : 0, second = e + 1 < width ? rotated.at(i, e + 1) : 0;
      terms.at(i, e) = rstd * (r.diagonal[k] * first + r.superdiagonal[k] * second) + r.shift[k];
    }
  }
  bool inside = true;
  for (int64_t e = width - 1; e < outputs; e++) {
    inside = inside && r.superdiagonal[static_cast<size_t>(e)] == 0 && (e < width || r.diagonal[static_cast<size_t>(e)] == 0);
  }
  check(inside, what + ": zeros where B has no element");
  const Array p = products(normal, Array(w.projection, outputs, width));
  check_error(terms, products(p, rotation), rounding, what + ": U^T p");
  const Array cosines = products(reference::unit_rows(terms), reference::unit_rows(products(text, rotation)));
  check_error(cosines, products(reference::unit_rows(p), reference::unit_rows(text)), 2 * rounding, what + ": cosines");
}

DESAP_CASE(fold_norm_is_exact) {
  for (const bool with_bias : {true, false}) {
    const Floats weight = Random(1).floats(6 * 35), bias = Random(2).floats(6);
    const Floats gamma = Random(3).floats(35), beta = Random(4).floats(35);
    const FoldedLayer layer = fold_norm(weight.data(), with_bias ? bias.data() : nullptr, gamma.data(), beta.data(), 6, 35);
    const Array x(Random(5).floats(3 * 35), 3, 35), w(weight, 6, 35), b(bias, 1, 6), folded_bias(layer.bias, 1, 6);
    Array affine = x;
    for (int64_t i = 0; i < x.rows; i++) {
      for (int64_t j = 0; j < x.cols; j++) {
        affine.at(i, j) = x.at(i, j) * gamma[static_cast<size_t>(j)] + beta[static_cast<size_t>(j)];
      }
    }
    const Array expected = reference::linear(affine, w, with_bias ? &b : nullptr);
    const Array actual = reference::linear(x, Array(layer.weight, 6, 35), &folded_bias);
    check_error(actual, expected, 1e-14, with_bias ? "with bias" : "without");
  }
}

// Widths and embeddings on both sides of a pair of lanes, of a panel of reflections, and of each other.
DESAP_CASE(read_out_rotates) {
  const int64_t shapes[][2] = {{1, 1}, {2, 1},   {3, 1},   {40, 1},   {1, 3},    {2, 2},   {2, 9},    {5, 3},  {3, 5},
                               {8, 8}, {31, 33}, {32, 32}, {33, 32},  {32, 33},  {34, 33}, {64, 20},  {20, 64}, {65, 64},
                               {66, 65}, {97, 70}, {70, 97}, {130, 130}, {300, 40}, {40, 300}};
  for (const auto& [width, embedding] : shapes) {
    const RandomWeights w = random_weights(width, embedding);
    check_read_out(w, rotate(w), std::to_string(width) + " to " + std::to_string(embedding));
  }
}

DESAP_CASE(read_out_rotates_at_any_scale) {
  for (const float projection : {1e-20f, 1.0f, 1e20f}) {
    for (const float gain : {1e-15f, 1.0f, 1e15f}) {
      for (const float out : {1e-15f, 1.0f, 1e15f}) {
        RandomWeights w = random_weights(70, 40);
        for (float& x : w.projection) x *= projection;
        for (float& x : w.post_weight) x *= gain;
        for (Floats* part : {&w.out, &w.out_bias}) {
          for (float& x : *part) x *= out;
        }
        char what[64];
        std::snprintf(what, sizeof what, "projection %g, gain %g, out %g", projection, gain, out);
        check_read_out(w, rotate(w), what);
      }
    }
  }
}

DESAP_CASE(read_out_rotates_what_has_no_full_rank) {
  const int64_t shapes[][2] = {{70, 40}, {40, 70}, {64, 64}};
  for (const auto& shape : shapes) {
    const int64_t width = shape[0], embedding = shape[1];
    const auto row = [&](RandomWeights& w, int64_t e) { return w.projection.data() + e * width; };
    const auto run = [&](const char* what, const std::function<void(RandomWeights&)>& change) {
      RandomWeights w = random_weights(width, embedding);
      change(w);
      check_read_out(w, rotate(w), std::string(what) + ", " + std::to_string(width) + " to " + std::to_string(embedding));
    };
    run("rows of zeros", [&](RandomWeights& w) {
      for (int64_t e : {int64_t{0}, int64_t{5}, int64_t{33}, embedding - 1}) std::fill_n(row(w, e), width, 0.0f);
    });
    run("equal rows", [&](RandomWeights& w) {
      for (int64_t e = 1; e < embedding; e++) std::copy_n(row(w, 0), width, row(w, e));
    });
    run("one element", [&](RandomWeights& w) {
      std::fill(w.projection.begin(), w.projection.end(), 0.0f);
      row(w, 7)[9] = 3;
    });
    run("constant rows, which the centring removes", [&](RandomWeights& w) {
      std::fill(w.post_weight.begin(), w.post_weight.end(), 1.0f);
      for (int64_t e = 0; e < embedding; e++) std::fill_n(row(w, e), width, static_cast<float>(e + 1));
    });
    run("rows from 1 to 1e-30", [&](RandomWeights& w) {
      for (int64_t e = 0; e < embedding; e++) {
        const float scale = static_cast<float>(std::pow(10, -30.0 * static_cast<double>(e) / static_cast<double>(embedding)));
        for (int64_t j = 0; j < width; j++) row(w, e)[j] *= scale;
      }
    });
    run("gains of zero", [&](RandomWeights& w) { std::fill_n(w.post_weight.begin(), width - 2, 0.0f); });
    run("projection of zero", [&](RandomWeights& w) { std::fill(w.projection.begin(), w.projection.end(), 0.0f); });
    run("weights of zero", [&](RandomWeights& w) {
      for (Floats* part : {&w.projection, &w.post_weight, &w.post_bias, &w.out, &w.out_bias}) part->assign(part->size(), 0.0f);
    });
  }
}

DESAP_CASE(read_out_is_the_same_for_every_number_of_threads) {
  const RandomWeights w = random_weights(150, 110);
  const auto all = [&](int threads) {
    const RotatedReadOut r = rotate(w, threads);
    return concatenate({r.weight, r.bias, r.diagonal, r.superdiagonal, r.shift, r.rotation});
  };
  const Floats one = all(1);
  for (int threads : {0, 2, 3, 16}) {
    const Floats several = all(threads);
    check(several.size() == one.size() && std::memcmp(several.data(), one.data(), one.size() * sizeof(float)) == 0,
          std::to_string(threads) + " threads");
  }
}

}  // namespace
}  // namespace desap::test
