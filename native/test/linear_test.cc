// linear and linear_pack against float64.
#include "kernel_test.h"

namespace desap::test {
namespace {

DESAP_CASE(linear_shapes) {
  const int64_t shapes[][3] = {{1, 1, 1},   {1, 16, 16},  {2, 20, 33},   {17, 64, 80},   {33, 80, 17},  {65, 32, 65},  {97, 128, 64},
                               {5, 7, 130}, {6, 64, 128}, {12, 65, 256}, {145, 256, 48}, {96, 1281, 20}, {7, 3000, 70}, {257, 100, 96},
                               {400, 40, 520}};  // the last in blocks of other sizes for other numbers of threads
  for (const auto& sizes : shapes) {
    const int64_t rows = sizes[0], in = sizes[1], out = sizes[2];
    if (rows == 400 && !machine.affords(static_cast<double>(rows * in * out))) continue;
    Random random(static_cast<uint64_t>(rows * 7 + in * 3 + out));
    const Floats x = random.floats(rows * in), w = random.floats(out * in), b = random.floats(out);
    for (bool with_bias : {true, false}) {
      const std::string what = shape({rows, in, out}) + (with_bias ? " bias" : "");
      const Floats y = machine.same<float>(what, [&](Context& context) {
        Linear* packed = nullptr;
        check(linear_pack(context, Rows(w, out, in, 1), with_bias ? b.data() : nullptr, &packed).good(), "pack");
        Rows result(rows, out, 3);
        check(linear(context, Rows(x, rows, in, 2), *packed, result).good(), "status");
        linear_free(packed);
        return result.dense();
      });
      const Array bias(b, 1, out);
      check_close(y, reference::linear({x, rows, in}, {w, out, in}, with_bias ? &bias : nullptr).data, machine.tolerance(3e-6), what,
                  std::sqrt(static_cast<double>(in)));
    }
  }
}

// One number per row, so that each sum is the number itself; wherever in a row it stands.
DESAP_CASE(linear_rounds_to_the_nearest_bfloat16_of_two_the_even_one) {
  if (machine.precision != Precision::bf16) return;
  const uint32_t bits[][2] = {{0x3f808000, 0x3f800000}, {0x3f818000, 0x3f820000}, {0x3f808001, 0x3f810000}, {0xbf807fff, 0xbf800000},
                              {0x7f7f7fff, 0x7f7f0000}, {0x7f7f8000, 0x7f800000}, {0x00800001, 0x00800000}, {0x80000000, 0x00000000}};
  const auto number = [](uint32_t word) {
    float x;
    std::memcpy(&x, &word, sizeof x);
    return x;
  };
  const int64_t in = 75;
  const Floats ones(static_cast<size_t>(in), 1.0f);
  Linear* packed = nullptr;
  check(linear_pack(machine.one(), {ones.data(), 1, in, in}, nullptr, &packed).good(), "pack");
  for (const auto& [given, wanted] : bits) {
    Floats x(static_cast<size_t>(in * in), 0.0f);
    for (int64_t i = 0; i < in; i++) x[static_cast<size_t>(i * in + i)] = number(given);
    Rows y(in, 1);
    check(linear(machine.one(), {x.data(), in, in, in}, *packed, y).good(), "status");
    bool equal = true;
    for (float value : y.dense()) equal = equal && value == number(wanted);
    check(equal, std::to_string(number(given)));
  }
  linear_free(packed);
}

DESAP_CASE(linear_rows_do_not_depend_on_each_other) {
  const int64_t in = 70, out = 75;
  Random random(9);
  const Floats x = random.floats(100 * in), w = random.floats(out * in);
  Linear* packed = nullptr;
  linear_pack(machine.one(), Rows(w, out, in), nullptr, &packed);
  Rows all(100, out);
  linear(machine.one(), Rows(x, 100, in), *packed, all);
  bool equal = true;
  for (int64_t i = 0; i < 100; i++) {
    Rows one(1, out);
    linear(machine.one(), {x.data() + i * in, 1, in, in}, *packed, one);
    equal = equal && std::memcmp(one.data.data(), all.data.data() + i * out, out * sizeof(float)) == 0;
  }
  check(equal, "a row alone gives the same bits as among others");
  linear_free(packed);
}

}  // namespace
}  // namespace desap::test
