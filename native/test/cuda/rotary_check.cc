// rotary.cu against float64: an operand in place.
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
      const Bits left = x.bits();
      bool padding = true;
      for (size_t i = 0; i < left.size(); i++) {
        const int64_t column = static_cast<int64_t>(i) % x.ld;
        padding = padding && (left[i] == 0 || (column < heads * x.padded && column % x.padded < size));
      }
      check(padding, what + ": padding");
    }
  }
}

}  // namespace
}  // namespace desap::test
