// Products of fragments (fragments.cuh) on the tensor cores at each precision, and the way from float32 to fragments.
//
//   fp32   a b = a_hi b_hi + a_hi b_lo + a_lo b_hi    three products into one float32 sum, in this order
//   fp16   a b = a_hi b_hi                            binary16
//   bf16   a b = a_hi b_hi                            bfloat16
#pragma once

#include "fragments.cuh"
#include "ptx.cuh"

namespace desap::cuda {

// One product of one pair of planes.
template <Precision precision>
__device__ __forceinline__ void multiply_planes(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (precision == Precision::bf16) {
    ptx::multiply_bf16(d, a, b);
  } else {
    ptx::multiply_f16(d, a, b);
  }
}

// d += a b, all its products one after the other; the `lo` arguments are read for fp32 only. Where many d's are at
// hand it is faster to go over all of them with multiply_planes product by product: the products of one d wait for each
// other.
template <Precision precision>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a_hi)[4],
                                         [[maybe_unused]] const uint32_t (&a_lo)[4], const uint32_t (&b_hi)[2],
                                         [[maybe_unused]] const uint32_t (&b_lo)[2]) {
  multiply_planes<precision>(d, a_hi, b_hi);
  if constexpr (precision == Precision::fp32) {
    multiply_planes<precision>(d, a_hi, b_lo);
    multiply_planes<precision>(d, a_lo, b_hi);
  }
}

// The first plane of two numbers, rounded to nearest even, `low` in the low half.
template <Precision precision>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (precision == Precision::bf16) {
    return ptx::pack_bf16(low, high);
  } else {
    return ptx::pack_f16(low, high);
  }
}

// The number that 16 bits of one plane stand for.
template <Precision precision>
__device__ __forceinline__ float unpack(uint16_t bits) {
  if constexpr (precision == Precision::bf16) {
    return ptx::from_bf16(bits);
  } else {
    return ptx::from_f16(bits);
  }
}

// Two numbers as elements of both planes; lo is 0 unless the precision is fp32. x - hi is exact in float32.
template <Precision precision>
__device__ __forceinline__ void split(float low, float high, uint32_t& hi, uint32_t& lo) {
  hi = pack<precision>(low, high);
  lo = 0;
  if constexpr (precision == Precision::fp32) {
    lo = pack<precision>(low - unpack<precision>(static_cast<uint16_t>(hi & 0xffff)),
                         high - unpack<precision>(static_cast<uint16_t>(hi >> 16)));
  }
}

// 8 consecutive elements of a row of an operand, from `column` on, a multiple of 8.
template <Precision precision>
__device__ __forceinline__ void store(const Operand& y, int64_t row, int column, const float (&value)[8]) {
  uint4 hi, lo;
  split<precision>(value[0], value[1], hi.x, lo.x);
  split<precision>(value[2], value[3], hi.y, lo.y);
  split<precision>(value[4], value[5], hi.z, lo.z);
  split<precision>(value[6], value[7], hi.w, lo.w);
  *reinterpret_cast<uint4*>(y.hi + row * y.ld + column) = hi;
  if constexpr (precision == Precision::fp32) *reinterpret_cast<uint4*>(y.lo + row * y.ld + column) = lo;
}

}  // namespace desap::cuda
