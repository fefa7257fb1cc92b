// dpp against float64.
#include "greedy.h"

namespace desap::test {
namespace {

void check_dpp(const Machine& machine, const Floats& x, int64_t rows, int64_t cols, const Floats& relevance, float blend, int64_t count, const std::string& what) {
  const Ints picked = machine.same<int32_t>(what, [&](Context& context) {
    Ints picks(static_cast<size_t>(count), -1);
    check(dpp(context, Rows(x, rows, cols, 1), relevance.data(), blend, count, picks.data()).good(), what + " status");
    return picks;
  });
  check(picked == reference::dpp({x, rows, cols}, relevance, blend, count), what);
}

DESAP_CASE(dpp_picks) {
  if (machine.tested_already()) return;
  for (const auto& [rows, cols, count] : std::vector<std::array<int64_t, 3>>{
           {1, 5, 1}, {2, 8, 2}, {17, 20, 17}, {97, 33, 50}, {145, 64, 20}, {257, 80, 75}, {300, 48, 0}, {200, 24, 60}}) {
    if (!machine.affords(static_cast<double>(rows * rows * cols))) continue;
    Random random(static_cast<uint64_t>(rows + cols));
    const Floats x = random.floats(rows * cols);
    Floats relevance, few;
    for (int64_t i = 0; i < rows; i++) relevance.push_back(0.1f + std::fabs(random.normal())), few.push_back(0.5f * static_cast<float>(random.below(4) - 1));
    for (float blend : {1.0f, 0.4f, 0.0f}) {
      const std::string what = shape({rows, cols, count}) + " blend " + std::to_string(blend);
      check_dpp(machine, x, rows, cols, relevance, blend, count, what);
      // Exact in float32 too, where the terms are of one kind: ties are ties.
      if (blend == 1 || blend == 0) check_dpp(machine, axes(rows, cols, 5), rows, cols, few, blend, count, "ties " + what);
    }
  }
}

DESAP_CASE(dpp_not_finite) {
  if (machine.tested_already()) return;
  const Floats ones(40, 1.0f);
  int32_t picked[2];
  for_rows_not_finite([&](ConstMatrix x, int64_t row, const std::string& what) {
    check(is(dpp(machine.one(), x, ones.data(), 1, 2, picked), Code::not_finite, "x", row), what);
  });
  const Floats x = Random(3).floats(40 * 8);
  for (float bad : {NAN, infinity, 1e20f}) {
    Floats relevance = ones;
    relevance[7] = relevance[9] = bad;
    check(is(dpp(machine.one(), {x.data(), 40, 8, 8}, relevance.data(), 1, 2, picked), Code::not_finite, "relevance", 7), "relevance");
  }
}

}  // namespace
}  // namespace desap::test
