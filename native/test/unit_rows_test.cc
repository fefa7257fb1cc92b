// unit_rows against float64.
#include "kernel_test.h"

namespace desap::test {
namespace {

DESAP_CASE(unit_rows_shapes) {
  for (int64_t cols : {1, 2, 16, 17, 31, 64, 80, 257, 768}) {
    Random random(static_cast<uint64_t>(cols));
    Floats x = random.floats(33 * cols);
    for (int64_t j = 0; j < cols; j++) {
      x[static_cast<size_t>(5 * cols + j)] = 0;          // stays zero
      x[static_cast<size_t>(6 * cols + j)] *= 1e-14f;    // shorter than 1e-12: divided by 1e-12
      x[static_cast<size_t>(7 * cols + j)] *= 1e15f;
    }
    const Floats y = machine.same<float>(shape({cols}), [&](Context& context) {
      Rows out(x, 33, cols, 2);
      check(unit_rows(context, out, out).good(), "status");
      return out.dense();
    });
    check_close(y, reference::unit_rows({x, 33, cols}).data, 5e-7, shape({cols}));
    bool zero = true;
    for (int64_t j = 0; j < cols; j++) zero = zero && y[static_cast<size_t>(5 * cols + j)] == 0;
    check(zero, "a zero row stays zero");
  }
}

DESAP_CASE(unit_rows_names_rows_that_are_not_finite) {
  if (machine.tested_already()) return;
  for_rows_not_finite([&](const Rows& x, int64_t bad, const std::string& what) {
    Rows y(x.rows, x.cols);
    check(is(unit_rows(machine.one(), x, y), Code::not_finite, "x", bad), what);
  });
}

}  // namespace
}  // namespace desap::test
