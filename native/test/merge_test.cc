// merge against float64.
#include "kernel_test.h"

namespace desap::test {
namespace {

void check_merge(const Machine& machine, const Floats& x, int64_t rows, int64_t cols, const Ints& kept, const std::string& what) {
  const int64_t k = static_cast<int64_t>(kept.size());
  Ints assignment(static_cast<size_t>(rows)), group(static_cast<size_t>(k));
  const Floats tokens = machine.same<float>(what, [&](Context& context) {
    Rows out(k, cols, 2);
    Ints a(static_cast<size_t>(rows)), g(static_cast<size_t>(k));
    check(merge(context, Rows(x, rows, cols, 1), kept.data(), k, out, a.data(), g.data()).good(), "status");
    assignment = a;
    group = g;
    Floats y = out.dense();
    y.insert(y.end(), a.begin(), a.end());
    return y;
  });
  const Array features(x, rows, cols), similarities = reference::similarities(features, kept);
  bool nearest = true;
  Ints members(static_cast<size_t>(k));
  for (int64_t i = 0; i < rows; i++) {
    const int32_t chosen = assignment[static_cast<size_t>(i)];
    for (int64_t c = 0; c < k; c++) nearest = nearest && similarities.at(i, chosen) >= similarities.at(i, c) - 1e-6;
    members[static_cast<size_t>(chosen)]++;
  }
  check(nearest, what + " assignment");
  check(group == members, what + " counts");
  check_close(Floats(tokens.begin(), tokens.begin() + k * cols), reference::means(features, assignment, k).data, 3e-6, what + " tokens");
}

DESAP_CASE(merge_shapes) {
  if (machine.tested_already()) return;
  for (int64_t rows : {1, 2, 17, 33, 97, 144, 256, 576}) {
    for (int64_t k : {int64_t{1}, int64_t{2}, rows / 9, rows / 4, rows}) {
      if (k < 1 || k > rows) continue;
      const int64_t cols = rows % 2 ? 40 : 64;
      Random random(static_cast<uint64_t>(rows * 3 + k));
      Ints kept(static_cast<size_t>(rows));
      std::iota(kept.begin(), kept.end(), 0);
      for (int64_t i = 0; i < rows; i++) std::swap(kept[static_cast<size_t>(i)], kept[static_cast<size_t>(random.below(rows))]);
      kept.resize(static_cast<size_t>(k));
      std::sort(kept.begin(), kept.end());
      check_merge(machine, random.floats(rows * cols), rows, cols, kept, shape({rows, cols, k}));
    }
  }
}

DESAP_CASE(merge_ties_go_to_the_first_centre) {
  const int64_t cols = 24, rows = 150;
  const Floats one = Random(21).floats(cols);
  for (int64_t k : {2, 7, 40, 150}) {
    Floats x;  // every row the same direction, lengths powers of two: all similarities are equal
    for (int64_t i = 0; i < rows; i++) {
      for (float v : one) x.push_back(std::ldexp(v, static_cast<int>(i % 5)));
    }
    Ints kept, assignment(static_cast<size_t>(rows)), group(static_cast<size_t>(k));
    for (int64_t c = 0; c < k; c++) kept.push_back(static_cast<int32_t>(c));
    Rows tokens(k, cols);
    merge(machine.one(), Rows(x, rows, cols), kept.data(), k, tokens, assignment.data(), group.data());
    bool ok = true;
    for (int64_t i = 0; i < rows; i++) ok = ok && assignment[static_cast<size_t>(i)] == (i < k ? i : 0);
    check(ok && group[0] == rows - k + 1, std::to_string(k) + " equal centres");
  }
}

DESAP_CASE(merge_zero_rows_and_negative_similarities) {
  const int64_t cols = 16;
  Floats x(5 * cols, 0.0f);
  for (int64_t d = 0; d < cols; d++) {
    x[static_cast<size_t>(0 * cols + d)] = 1;   // centre
    x[static_cast<size_t>(1 * cols + d)] = d % 2 ? 1.0f : 0.9f;  // centre
    x[static_cast<size_t>(2 * cols + d)] = -1;  // nearest of two opposites: the second
  }                                             // 3, 4: zero rows, equally far from all
  Ints assignment(5), group(2);
  const Ints kept = {0, 1};
  Rows tokens(2, cols);
  merge(machine.one(), Rows(x, 5, cols), kept.data(), 2, tokens, assignment.data(), group.data());
  check(assignment == Ints({0, 1, 1, 0, 0}) && group == Ints({3, 2}), "assignment");
  check(tokens.data[0] == 1.0f / 3, "mean with the centre and the zero rows");
  check(tokens.data[static_cast<size_t>(cols) + 1] == 0, "mean of opposites");
}

DESAP_CASE(kept_rows_stay_as_they_are) {
  const Floats x = {1.5f, -0.0f, 3e-39f, 2, 5, 7};
  const Ints kept = {0, 1};
  Ints assignment(2), group(2);
  Rows tokens(2, 3);
  merge(machine.one(), Rows(x, 2, 3), kept.data(), 2, tokens, assignment.data(), group.data());
  check(std::memcmp(tokens.data.data(), x.data(), sizeof(float) * 6) == 0, "bit for bit");
}

DESAP_CASE(merge_names_rows_that_are_not_finite) {
  if (machine.tested_already()) return;
  for_rows_not_finite([&](const Rows& x, int64_t bad, const std::string& what) {
    const Ints kept = {1, 5};
    Ints assignment(40, 77), counts_(2, 77);
    Rows tokens(2, x.cols);
    check(is(merge(machine.one(), x, kept.data(), 2, tokens, assignment.data(), counts_.data()), Code::not_finite, "features", bad), what);
    check(assignment[0] == 77 && counts_[0] == 77 && std::isnan(tokens.data[0]), "nothing is written on failure");
  });
}

}  // namespace
}  // namespace desap::test
