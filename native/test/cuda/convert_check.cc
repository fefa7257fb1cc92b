// convert.cu: float32, binary16 and operands, exactly.
#include "operands.h"

namespace desap::test {
namespace {

DESAP_CUDA_CASE(convert_half) {
  Bits all(65536);
  for (size_t i = 0; i < all.size(); i++) all[i] = static_cast<uint16_t>(i);
  const DeviceArray<uint16_t> x(all);
  for (int64_t shift : {0, 1, 8}) {
    for (int64_t size : {1, 7, 8, 9, 2049, 65520}) {
      const DeviceArray<float> y(size);
      cuda::convert_half(queue, x.get() + shift, size, y.get());
      const Floats actual = y.read();
      bool equal = true;
      for (int64_t i = 0; i < size; i++) {
        const double expected = decoded(Precision::fp16, all[static_cast<size_t>(shift + i)]);
        const double got = actual[static_cast<size_t>(i)];
        equal = equal && (std::isnan(expected) ? std::isnan(got) : got == expected && std::signbit(got) == std::signbit(expected));
      }
      check(equal, "every number, " + std::to_string(size) + " from " + std::to_string(shift));
    }
  }
}

DESAP_CUDA_CASE(convert_to_half) {
  Random random(1);
  Floats values = {0.0f, -0.0f, 65504, 65519.99f, 65520, -1e10f, INFINITY, 0x1p-24f, 0x1p-25f, 0x1.000002p-25f, 1e-30f,
                   0x1.ffcp-15f, 0x1.ffep-15f, 1 + 0x1p-11f, 1 + 0x3p-11f, 2049, 2051};
  for (int i = 0; i < 2000; i++) values.push_back(random.normal() * std::exp2(static_cast<float>(random.below(44)) - 28));
  for (int64_t shift : {0, 1}) {
    for (int64_t size : {int64_t{1}, int64_t{9}, static_cast<int64_t>(values.size()) - 1}) {
      const DeviceArray<float> x(values);
      const DeviceArray<uint16_t> y(size);
      cuda::convert_to_half(queue, x.get() + shift, size, y.get());
      const Bits actual = y.read();
      bool equal = true;
      for (int64_t i = 0; i < size; i++) {
        equal = equal && decoded(Precision::fp16, actual[static_cast<size_t>(i)]) ==
                             rounded(Precision::fp16, values[static_cast<size_t>(shift + i)]);
      }
      check(equal, std::to_string(size) + " from " + std::to_string(shift));
    }
  }
}

DESAP_CUDA_CASE(magnitude) {
  const auto exponent_of = [&](const Floats& x, int64_t rows, int64_t columns) {
    const DeviceRows device(x, rows, columns, 3);
    const DeviceArray<int> exponent(1);
    cuda::magnitude(queue, device, exponent.get());
    return exponent.read()[0];
  };
  check(exponent_of({1}, 1, 1) == 11 && exponent_of({-1.99f}, 1, 1) == 11 && exponent_of({2}, 1, 1) == 10, "near 1");
  check(exponent_of({0, -0.0f}, 1, 2) == 0 && exponent_of({NAN, INFINITY}, 1, 2) == 0, "nothing finite");
  check(exponent_of({NAN, -INFINITY, 4096, 1}, 2, 2) == -1, "beside what is not finite");
  check(exponent_of({0x1p-149f}, 1, 1) == 160 && exponent_of({0x1.8p-130f}, 1, 1) == 141, "subnormal");
  check(exponent_of({std::numeric_limits<float>::max()}, 1, 1) == -116, "largest");
  Floats many(70 * 130, 0.5f);
  many[69 * 130 + 129] = -100;
  check(exponent_of(many, 70, 130) == 5, "the last element");
}

DESAP_CUDA_CASE(operands) {
  struct Shape { int64_t rows; int heads, size, padded; int64_t ld; };
  Random random(2);
  for (const Shape& s : {Shape{5, 1, 100, 128, 128}, Shape{3, 3, 20, 32, 128}, Shape{2, 2, 80, 80, 192}, Shape{4, 1, 2100, 2112, 2112}}) {
    const int64_t columns = s.heads * s.size;
    for (float magnitude : {1.0f, 1e-35f, 1e30f}) {
      const Floats x = random.floats(s.rows * columns, magnitude);
      const DeviceRows device(x, s.rows, columns, 1);
      const DeviceArray<int> exponent(1);
      cuda::magnitude(queue, device, exponent.get());
      const int e = exponent.read()[0];
      for (Precision precision : precisions) {
        const std::string what = std::string(name_of(precision)) + " " + std::to_string(columns) + " at " + std::to_string(magnitude);
        const DeviceOperand operand(precision, s.rows, s.ld);
        cuda::to_operand(queue, precision, device, s.heads, s.padded, exponent.get(), operand);
        const Array planes = operand.read();
        Array expected(s.rows, s.ld);
        for (int64_t i = 0; i < s.rows; i++) {
          for (int64_t j = 0; j < columns; j++) {
            expected.at(i, j / s.size * s.padded + j % s.size) =
                kept_of(precision, std::ldexp(static_cast<double>(x[static_cast<size_t>(i * columns + j)]), e));
          }
        }
        check(planes.data == expected.data, what + ": to");

        Floats scale;
        for (int h = 0; h < s.heads; h++) scale.push_back(std::exp2(static_cast<float>(h - 1)));
        const DeviceArray<float> device_scale(scale);
        const DeviceRows back(s.rows, columns, 2);
        cuda::from_operand(queue, precision, operand, s.heads, s.padded, exponent.get(), device_scale.get(), back);
        Doubles original;
        for (int64_t i = 0; i < s.rows * columns; i++) {
          original.push_back(static_cast<double>(x[static_cast<size_t>(i)]) * scale[static_cast<size_t>(i % columns / s.size)]);
        }
        check_close(back.dense(), original, precision == Precision::fp32 ? 0x1p-22 : precision == Precision::fp16 ? 0x1p-11 : 0x1p-8, what + ": from");
      }
    }
  }
}

}  // namespace
}  // namespace desap::test
