// rotary.cu against float64: an operand in place, and saliency with tables.
#include <array>

#include "../random_block.h"
#include "heads.h"

namespace desap::test {
namespace {

DESAP_CUDA_CASE(rotate_operand) {
  for (Precision precision : precisions) {
    for (const auto& [rows, heads, size] : {std::array<int, 3>{1, 1, 2}, {17, 3, 16}, {33, 2, 40}, {40, 5, 80}, {9, 1, 128}}) {
      const int64_t width = heads * size;
      const RandomRotary rotary(rows, size, static_cast<uint64_t>(size));
      const DeviceArray<float> cos(rotary.cos), sin(rotary.sin);
      const Heads x(queue, precision, Random(static_cast<uint64_t>(rows)).floats(rows * width, 100), rows, heads, size);
      const Array expected = rotate64(x.array(queue), heads, rotary.tables());
      cuda::rotate(queue, precision, x.operand(), rows, heads, x.padded, size, {cos.get(), sin.get()});
      const std::string what = case_of(precision, heads, size) + ", " + std::to_string(rows) + " rows";
      check_close(x.read(queue), expected.data, precision == Precision::fp32 ? 1e-6 : precision == Precision::fp16 ? 5e-4 : 4e-3, what);
      check(x.padding_intact(), what + ": padding");
    }
  }
}

// Tables of any magnitude: those beyond 1 are divided by a power of two, and the scores multiplied again.
DESAP_CASE(saliency_rotated) {
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

}  // namespace
}  // namespace desap::test
