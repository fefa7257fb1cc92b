// rms_norm against float64.
#include "kernel_test.h"
#include "random_block.h"

namespace desap::test {
namespace {

DESAP_CASE(rms_norm_shapes) {
  if (machine.tested_already()) return;
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {7, 16}, {17, 33}, {40, 72}, {577, 80}}) {
    const Floats x = Random(static_cast<uint64_t>(cols)).floats(rows * cols, 20), weight = Random(2).floats(cols);
    const std::string what = shape({rows, cols});
    const Floats y = machine.same<float>(what, [&, rows = rows, cols = cols](Context& context) {
      Rows out(rows, cols, 3), in_place(x, rows, cols, 1);
      check(rms_norm(context, Rows(x, rows, cols, 2), weight.data(), 1e-6f, out).good(), "status");
      check(rms_norm(context, in_place, weight.data(), 1e-6f, in_place).good() && in_place.dense() == out.dense(), "in place");
      return out.dense();
    });
    check_close(y, rms_norm64({x, rows, cols}, weight, 1e-6).data, 1e-6, what);
  }
}

DESAP_CASE(rms_norm_without_weights) {
  if (machine.tested_already()) return;
  const Floats x = Random(8).floats(5 * 40), ones(40, 1);
  Rows with(5, 40, 2), without(5, 40, 2);
  check(rms_norm(machine.one(), Rows(x, 5, 40, 1), ones.data(), 1e-5f, with).good(), "with");
  check(rms_norm(machine.one(), Rows(x, 5, 40, 1), nullptr, 1e-5f, without).good(), "without");
  check(with.dense() == without.dense(), "without weights they count as 1");
  check_close(with.dense(), rms_norm64({x, 5, 40}, ones, 1e-5f).data, 1e-6, "against float64");
}

DESAP_CASE(rms_norm_not_finite) {
  if (machine.tested_already()) return;
  for_rows_not_finite([&](const Rows& x, int64_t row, const std::string& what) {
    Rows y(x.rows, x.cols);
    check(is(rms_norm(machine.one(), x, nullptr, 1e-5f, y), Code::not_finite, "x", row), what);
  });
}

}  // namespace
}  // namespace desap::test
