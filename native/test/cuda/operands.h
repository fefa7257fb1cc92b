// Operands, matrices and cells of faults in device memory, and what 16-bit elements hold.
#pragma once

#include <climits>

#include "../reference.h"
#include "batch.h"

namespace desap::test {

using cuda::ConstOperand;
using cuda::Operand;
using cuda::Queue;
using reference::Array;
using Bits = std::vector<uint16_t>;

// ---- 16-bit numbers on the host ---------------------------------------------------------------------------------------

// x rounded to nearest even with `bits` bits, of which the last one is worth at least 2^lowest.
inline double rounded_to(double x, int bits, int lowest) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int last = std::max(std::ilogb(x) - bits + 1, lowest);
  return std::ldexp(std::nearbyint(std::ldexp(x, -last)), last);
}
inline double rounded(Precision precision, double x) {
  if (precision == Precision::bf16) return rounded_to(x, 8, -133);
  const double y = rounded_to(x, 11, -24);
  return std::fabs(y) > 65504 ? std::copysign(HUGE_VAL, y) : y;
}
inline double decoded(Precision precision, uint16_t bits) {
  const int mantissa_bits = precision == Precision::bf16 ? 7 : 10;
  const int exponents = precision == Precision::bf16 ? 255 : 31;
  const int exponent = (bits & 0x7fff) >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
  double x = exponent == exponents ? (mantissa ? NAN : HUGE_VAL)
             : exponent == 0       ? std::ldexp(mantissa, 2 - (exponents + 1) / 2 - mantissa_bits)
                                   : std::ldexp(mantissa + (1 << mantissa_bits), exponent + 1 - (exponents + 1) / 2 - mantissa_bits);
  return bits & 0x8000 ? -x : x;
}
// What an operand holds of x: hi, or hi + lo.
inline double kept_of(Precision precision, double x) {
  const double hi = rounded(precision, x);
  return precision == Precision::fp32 ? hi + rounded(precision, x - hi) : hi;
}

// ---- Operands and matrices in device memory ---------------------------------------------------------------------------

struct DeviceOperand {
  DeviceOperand(Precision precision_, int64_t rows_, int64_t ld_)
      : precision(precision_), rows(rows_), ld(ld_), hi(rows * ld), lo(precision == Precision::fp32 ? rows * ld : 0) {}
  operator Operand() const { return from(0); }
  operator ConstOperand() const { return from(0); }
  Operand from(int64_t row) const { return {hi.get() + row * ld, two_planes() ? lo.get() + row * ld : nullptr, ld}; }
  bool two_planes() const { return precision == Precision::fp32; }
  // All elements with their padding.
  Array read() const {
    const Bits h = hi.read(), l = lo.read();
    Array x(rows, ld);
    for (size_t i = 0; i < h.size(); i++) x.data[i] = decoded(precision, h[i]) + (two_planes() ? decoded(precision, l[i]) : 0);
    return x;
  }
  Bits bits() const {
    Bits all = hi.read();
    const Bits low = lo.read();
    all.insert(all.end(), low.begin(), low.end());
    return all;
  }
  Precision precision;
  int64_t rows, ld;
  DeviceArray<uint16_t> hi, lo;
};

// A matrix whose rows are `gap` elements longer than its columns; the gap is poisoned and must stay so.
struct DeviceRows {
  DeviceRows(int64_t r, int64_t c, int64_t gap) : rows(r), columns(c), ld(c + gap), data(r * ld) {}
  DeviceRows(const Floats& x, int64_t r, int64_t c, int64_t gap) : rows(r), columns(c), ld(c + gap), data(Rows(x, r, c, gap).data) {}
  operator Matrix() const { return {data.get(), rows, columns, ld}; }
  operator ConstMatrix() const { return {data.get(), rows, columns, ld}; }
  Floats dense() const {
    Rows all(rows, columns, ld - columns);
    all.data = data.read();
    const Floats x = all.dense();
    check(x.size() == static_cast<size_t>(rows * columns), "written between rows");
    return x;
  }
  int64_t rows, columns, ld;
  DeviceArray<float> data;
};

struct DeviceFault {
  DeviceFault() : place(std::vector<int>{INT_MAX}) {}
  int* get() const { return place.get(); }
  int read() const { return place.read()[0]; }
  DeviceArray<int> place;
};

// Widths of rows: of one thread and many, in fours and not, more than one block of loads.
constexpr int64_t row_widths[] = {1, 20, 32, 33, 64, 100, 257, 1000, 1024, 1028, 1280, 2050};

}  // namespace desap::test
