// layer_norm against float64.
#include "kernel_test.h"

namespace desap::test {
namespace {

DESAP_CASE(layer_norm_shapes) {
  if (machine.tested_already()) return;
  for (int64_t rows : {1, 2, 17, 33, 97}) {
    for (int64_t cols : {1, 2, 16, 17, 31, 64, 80, 257, 1024}) {
      Random random(static_cast<uint64_t>(rows * 1000 + cols));
      const Floats x = random.floats(rows * cols), weight = random.floats(cols), bias = random.floats(cols);
      const Floats y = machine.same<float>(shape({rows, cols}), [&](Context& context) {
        Rows out(rows, cols, 3);
        check(layer_norm(context, Rows(x, rows, cols, 5), weight.data(), bias.data(), 1e-5f, out).good(), "status");
        return out.dense();
      });
      const Array expected = reference::layer_norm({x, rows, cols}, {weight, 1, cols}, {bias, 1, cols}, 1e-5f);
      check_close(y, expected.data, 2e-6, shape({rows, cols}));
    }
  }
}

DESAP_CASE(layer_norm_large_mean_and_in_place) {
  Floats x = Random(5).floats(7 * 1024);
  for (float& v : x) v += 100;
  const Floats weight(1024, 1.0f), bias(1024, 0.0f);
  Rows y(x, 7, 1024, 1);
  check(layer_norm(machine.one(), y, weight.data(), bias.data(), 1e-5f, y).good(), "status");
  const Array expected = reference::layer_norm({x, 7, 1024}, {weight, 1, 1024}, {bias, 1, 1024}, 1e-5f);
  check_close(y.dense(), expected.data, 1e-4, "mean 100 times the spread");
}

DESAP_CASE(layer_norm_names_rows_that_are_not_finite) {
  if (machine.tested_already()) return;
  for_rows_not_finite([&](const Rows& x, int64_t bad, const std::string& what) {
    const Floats weight(static_cast<size_t>(x.cols), 1.0f);
    Rows y(x.rows, x.cols);
    check(is(layer_norm(machine.one(), x, weight.data(), weight.data(), 1e-5f, y), Code::not_finite, "x", bad), what);
  });
}

}  // namespace
}  // namespace desap::test
