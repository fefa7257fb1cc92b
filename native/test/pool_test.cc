// pool against float64: units of one member and of many, in any order of the patches.
#include "kernel_test.h"

namespace desap::test {
namespace {

DESAP_CASE(pool_units) {
  if (machine.tested_already()) return;
  for (const auto& [size, units] : {std::pair<int64_t, int64_t>{1, 1}, {40, 1}, {40, 40}, {97, 7}, {1000, 300}}) {
    Random random(static_cast<uint64_t>(size));
    const Floats scores = random.floats(size);
    Ints unit;
    for (int64_t i = 0; i < size; i++) unit.push_back(static_cast<int32_t>(i < units ? units - 1 - i : random.below(units)));
    Doubles sums(static_cast<size_t>(units)), members(static_cast<size_t>(units));
    for (size_t i = 0; i < unit.size(); i++) {
      sums[static_cast<size_t>(unit[i])] += scores[i];
      members[static_cast<size_t>(unit[i])]++;
    }
    for (size_t u = 0; u < sums.size(); u++) sums[u] /= members[u];
    const std::string what = shape({size, units});
    const Floats means = machine.same<float>(what, [&, size = size, units = units](Context& context) {
      Floats out(static_cast<size_t>(units) + 1, 7.0f);
      check(pool(context, scores.data(), unit.data(), size, units, out.data()).good(), "status");
      check(out.back() == 7.0f, "nothing written past the end");
      out.pop_back();
      return out;
    });
    check_close(means, sums, 1e-6, what);
  }
}

}  // namespace
}  // namespace desap::test
