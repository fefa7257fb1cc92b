// Matrices as the tensor cores read them: 16-bit elements, float32 sums.
//
//   fp32   x = hi + lo, two binary16 planes (22 bits); a product is hi hi + hi lo + lo hi, summed in float32
//   fp16   x = hi, binary16 (11 bits)
//   bf16   x = hi, bfloat16 (8 bits, the range of float32)
//
// binary16 holds magnitudes from 6e-8 to 65504 only. Everything stored here is scaled by powers of two so that it fits for
// certain, not just usually: normalised rows have |x| <= sqrt(D), and from that follows a bound on each projection
// (Cauchy-Schwarz), by which its weights are scaled when they are packed (weights.h).
#pragma once

#include <cstdint>
#include <type_traits>

#include "../kernels.h"

namespace desap::cuda {

// body(constant) with the precision as a compile-time constant, decltype(constant)::value.
template <class Body>
void with_precision(Precision precision, const Body& body) {
  switch (precision) {
    case Precision::fp32: return body(std::integral_constant<Precision, Precision::fp32>());
    case Precision::fp16: return body(std::integral_constant<Precision, Precision::fp16>());
    case Precision::bf16: return body(std::integral_constant<Precision, Precision::bf16>());
  }
}

// Elements per row are padded with zeros to a multiple of this, so that every 16-byte copy and every k-step of 16 is whole.
constexpr int operand_pad = 64;
constexpr int64_t padded_width(int64_t width) { return (width + operand_pad - 1) / operand_pad * operand_pad; }

// Device memory. `ld` in elements, a multiple of 8; both planes have the same ld and 16-byte aligned rows; lo is null
// unless the precision is fp32.
template <class T>
struct OperandOf {
  T* hi;
  T* lo;
  int64_t ld;
  operator OperandOf<const T>() const { return {hi, lo, ld}; }
};
using Operand = OperandOf<uint16_t>;
using ConstOperand = OperandOf<const uint16_t>;

// The head sizes that the attention is compiled for; others are padded with zeros to the next.
constexpr int head_sizes[] = {32, 64, 80, 96, 128};
constexpr int largest_head_size = 128;
constexpr int padded_head_size(int size) {
  for (int padded : head_sizes) {
    if (size <= padded) return padded;
  }
  return -1;
}

}  // namespace desap::cuda
