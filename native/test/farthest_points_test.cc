// farthest_points against float64.
#include "greedy.h"

namespace desap::test {
namespace {

void check_farthest(const Machine& machine, const Floats& x, int64_t rows, int64_t cols, const Ints& seeds, int64_t count, const std::string& what) {
  const Ints picked = machine.same<int32_t>(what, [&](Context& context) {
    Ints picks(static_cast<size_t>(count), -1);
    const Status status = farthest_points(context, Rows(x, rows, cols, 1), seeds.data(), static_cast<int64_t>(seeds.size()), count, picks.data());
    check(status.good(), what + " status");
    return picks;
  });
  check(picked == reference::farthest_points({x, rows, cols}, seeds, count), what);
}

DESAP_CASE(farthest_points_picks) {
  if (machine.tested_already()) return;
  for (const auto& [rows, cols, seed_count, count] : std::vector<std::array<int64_t, 4>>{
           {1, 5, 0, 1}, {2, 8, 0, 2}, {17, 20, 0, 17}, {33, 16, 3, 5}, {97, 33, 40, 57}, {145, 64, 0, 20}, {257, 80, 35, 60}, {300, 48, 2, 0}, {1100, 8, 0, 9}}) {
    if (!machine.affords(static_cast<double>(rows * rows * cols))) continue;
    Random random(static_cast<uint64_t>(rows + cols));
    Ints seeds;
    for (int64_t s = 0; s < seed_count; s++) seeds.push_back(static_cast<int32_t>(rows - 1 - 2 * s >= 0 ? rows - 1 - 2 * s : 2 * s - rows));
    check_farthest(machine, random.floats(rows * cols), rows, cols, seeds, count, shape({rows, cols, seed_count, count}));
    check_farthest(machine, axes(rows, cols, 5), rows, cols, seeds, count, "ties " + shape({rows, cols, seed_count, count}));
  }
}

DESAP_CASE(farthest_points_not_finite) {
  if (machine.tested_already()) return;
  for_rows_not_finite([&](ConstMatrix x, int64_t row, const std::string& what) {
    const int32_t seed = 3;
    int32_t picked[2];
    check(is(farthest_points(machine.one(), x, nullptr, 0, 2, picked), Code::not_finite, "x", row), what);
    check(is(farthest_points(machine.one(), x, &seed, 1, 2, picked), Code::not_finite, "x", row), what + " with a seed");
  });
}

}  // namespace
}  // namespace desap::test
