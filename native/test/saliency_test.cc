// saliency against float64.
#include "kernel_test.h"
#include "random_block.h"

namespace desap::test {
namespace {

DESAP_CASE(saliency_shapes) {
  for_attention_shapes(machine, [&](int64_t rows, int64_t heads, int64_t size) {
    const int64_t width = heads * size;
    Random random(static_cast<uint64_t>(rows * 100 + size));
    const Floats q = random.floats(rows * width), k = random.floats(rows * width);
    for (bool class_token : {true, false}) {
      if (class_token && rows == 1) continue;
      const std::string what = shape({rows, heads, size}) + (class_token ? " of the class token" : " of all rows");
      const Floats s = machine.same<float>(what, [&](Context& context) {
        Floats out(static_cast<size_t>(class_token ? rows - 1 : rows) + 1, 7.0f);
        check(saliency(context, Rows(q, rows, width, 3), Rows(k, rows, width, 2), heads, class_token, {}, out.data()).good(), "status");
        check(out.back() == 7.0f, "nothing written past the end");
        out.pop_back();
        return out;
      });
      check_close(s, reference::saliency({q, rows, width}, {k, rows, width}, heads, class_token), machine.tolerance(5e-6), what);
    }
  });
}

DESAP_CASE(saliency_rotated_shapes) {
  for_attention_shapes(machine, [&](int64_t rows, int64_t heads, int64_t size) {
    const int64_t width = heads * size;
    const Floats q = Random(1).floats(rows * width), k = Random(2).floats(rows * width);
    const RandomRotary rotary(rows, size, 3);
    for (bool class_token : {true, false}) {
      if (class_token && rows == 1) continue;
      const std::string what = shape({rows, heads, size}) + (class_token ? " of the class token" : " of all rows");
      const Floats s = machine.same<float>(what, [&](Context& context) {
        Floats out(static_cast<size_t>(class_token ? rows - 1 : rows));
        check(saliency(context, Rows(q, rows, width, 3), Rows(k, rows, width, 2), heads, class_token, rotary.tables(), out.data()).good(), "status");
        return out;
      });
      const auto turned = [&](const Floats& x) { return rotate64({x, rows, width}, heads, rotary.tables()); };
      check_close(s, reference::saliency(turned(q), turned(k), heads, class_token), machine.tolerance(5e-6), what);
    }
  });
}

// Tables of any magnitude.
DESAP_CASE(saliency_rotated_by_any_magnitude) {
  const int64_t rows = 41, heads = 3, size = 20, width = heads * size;
  for (float gain : {1.0f, 0.01f, 3.0f, 1000.0f}) {
    const float spread = gain > 1 ? 1 / gain : 1;
    const Floats q = Random(1).floats(rows * width, spread), k = Random(2).floats(rows * width, spread);
    const RandomRotary rotary(rows, size, 3, gain);
    for (bool class_token : {false, true}) {
      const std::string what = "tables of " + std::to_string(gain) + (class_token ? ", class token" : "");
      const Floats s = machine.same<float>(what, [&](Context& context) {
        Floats out(static_cast<size_t>(rows - class_token));
        check(saliency(context, Rows(q, rows, width, 1), Rows(k, rows, width, 2), heads, class_token, rotary.tables(), out.data()).good(), "status");
        return out;
      });
      const Doubles expected = reference::saliency(rotate64({q, rows, width}, heads, rotary.tables()), rotate64({k, rows, width}, heads, rotary.tables()), heads, class_token);
      check_close(s, expected, machine.tolerance(5e-6), what);
    }
  }
}

// Scores up to 1e4, of integers that multiply exactly: see attention_large_scores.
DESAP_CASE(saliency_large_scores) {
  const int64_t rows = 300, size = 64;
  Random random(11);
  Floats q;
  for (int64_t i = 0; i < rows * size; i++) q.push_back(static_cast<float>(random.below(65) - 32));
  for (int64_t d = 0; d < size; d++) q[static_cast<size_t>(290 * size + d)] = 35;  // the largest score arrives last
  const Array operand(q, rows, size);
  Floats s(static_cast<size_t>(rows));
  saliency(machine.one(), Rows(q, rows, size), Rows(q, rows, size), 1, false, {}, s.data());
  check_close(s, reference::saliency(operand, operand, 1, false), machine.tolerance(1e-5), "column mean of them");
}

// One head of width 1, key 0 at 0: the weight of key 1 is e^x / (1 + e^x), which shows the exponential alone. Its argument
// x log2 e is rounded (constant and product): 1.25 |x| 2^-24 of relative error, on top of the function's own.
DESAP_CASE(saliency_shows_the_exponential) {
  if (machine.precision != Precision::fp32) return;  // operands of 16 bits hold no such x
  double error = 0;
  for (float x = -87.0f; x <= 0; x += machine.small() ? 0.91f : 0.0113f) {
    const Floats q = {1, 0}, k = {0, x};
    float p = -1;
    saliency(machine.one(), Rows(q, 2, 1), Rows(k, 2, 1), 1, true, {}, &p);
    const double expected = std::exp(static_cast<double>(x)) / (1 + std::exp(static_cast<double>(x)));
    error = std::fmax(error, std::fabs(p - expected) / expected / machine.tolerance(0x1p-22 + std::fabs(x) * 0x1.4p-24));
  }
  check(error < 1, "error " + std::to_string(error) + " of tolerance");
  for (float x : {-87.5f, -100.0f, -104.0f, -1e4f, -3e38f}) {
    const Floats q = {1, 0}, k = {0, x};
    float p = -1;
    saliency(machine.one(), Rows(q, 2, 1), Rows(k, 2, 1), 1, true, {}, &p);
    check(p >= 0 && p < 0x1p-126f, "underflows");
  }
}

}  // namespace
}  // namespace desap::test
