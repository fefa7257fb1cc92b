// Vectors of DESAP_LANES floats, as wide as one register of the instruction set that includes this file.
//
// GCC vector extensions: arithmetic and comparisons are the language's own operators, `a * b + c` becomes a fused
// multiply-add where the processor has one (floating-point contraction, the compilers' default), and a kernel reads like
// its formula. A comparison gives a mask that `?:` takes. Every function is forced inline: vectors never cross a call.
#pragma once

#define DESAP_INLINE inline __attribute__((always_inline))

// Unrolls a loop over registers before the compiler decides what lives in registers.
#define DESAP_UNROLL _Pragma("GCC unroll 8")

namespace desap {
namespace DESAP_ISA {

constexpr int lanes = DESAP_LANES;

#if DESAP_LANES == 1
using F = float;
using I = int32_t;
using U = uint32_t;
using UnalignedF = float;
using UnalignedI = int32_t;
#else
typedef float F __attribute__((vector_size(4 * DESAP_LANES)));
typedef int32_t I __attribute__((vector_size(4 * DESAP_LANES)));
typedef uint32_t U __attribute__((vector_size(4 * DESAP_LANES)));
typedef float UnalignedF __attribute__((vector_size(4 * DESAP_LANES), aligned(4), may_alias));
typedef int32_t UnalignedI __attribute__((vector_size(4 * DESAP_LANES), aligned(4), may_alias));
#endif

// ----------------------------------------------------------------------------------------------------------- memory

DESAP_INLINE F load(const float* p) { return *reinterpret_cast<const UnalignedF*>(p); }
DESAP_INLINE I load(const int32_t* p) { return *reinterpret_cast<const UnalignedI*>(p); }
DESAP_INLINE void store(float* p, F x) { *reinterpret_cast<UnalignedF*>(p) = x; }
DESAP_INLINE void store(int32_t* p, I x) { *reinterpret_cast<UnalignedI*>(p) = x; }

// x - 0 is x, also for -0; x + 0 is not, and would stay an addition.
DESAP_INLINE F broadcast(float x) { return x - F{}; }
DESAP_INLINE I broadcast(int32_t x) { return x - I{}; }

// The first n elements of a row's end, 0 < n; the other lanes are `rest`.
DESAP_INLINE F load_first(int64_t n, const float* p, float rest = 0) {
  if (n >= lanes) return load(p);
  float buffer[lanes];
  for (int i = 0; i < lanes; i++) buffer[i] = i < n ? p[i] : rest;
  return load(buffer);
}

DESAP_INLINE void store_first(int64_t n, float* p, F x) {
  if (n >= lanes) return store(p, x);
  float buffer[lanes];
  store(buffer, x);
  for (int64_t i = 0; i < n; i++) p[i] = buffer[i];
}

// The first n lanes of x; the others are `rest`.
DESAP_INLINE F first(int64_t n, F x, float rest = 0) {
  static const int32_t order[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(order) < broadcast(static_cast<int32_t>(n)) ? x : broadcast(rest);
}

// ------------------------------------------------------------------------------------------------------- arithmetic

// b where one of them is not a number. The compilers do not find the instruction by themselves.
DESAP_INLINE F max(F a, F b) {
#if DESAP_LANES == 16 && !defined(DESAP_NARROW_REGISTERS)
  return _mm512_maskz_max_ps(0xffff, a, b);
#elif DESAP_LANES == 8
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// Reductions halve the vector until one lane is left: one order, the same on every run. `combine` captures (rows.h says why).
template <class Combine>
DESAP_INLINE float halved(F x, const Combine& combine) {
#if DESAP_LANES >= 8 && !defined(DESAP_NARROW_REGISTERS)  // by name: the compilers would take 16 lanes out one by one
#if DESAP_LANES == 16
  const __m256 eight = combine(_mm512_maskz_extractf32x8_ps(0xff, x, 0), _mm512_maskz_extractf32x8_ps(0xff, x, 1));
#else
  const __m256 eight = x;
#endif
  const __m128 four = combine(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = combine(four, _mm_movehl_ps(four, four));
  return combine(two[0], two[1]);
#else
  float buffer[lanes];
  store(buffer, x);
  DESAP_UNROLL for (int half = lanes / 2; half > 0; half /= 2) {
    DESAP_UNROLL for (int i = 0; i < half; i++) buffer[i] = combine(buffer[i], buffer[i + half]);
  }
  return buffer[0];
#endif
}

DESAP_INLINE float sum(F x) {
  return halved(x, [&](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}
DESAP_INLINE float largest(F x) {
  return halved(x, [&](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

DESAP_INLINE U bits(F x) {
  U y;
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}

DESAP_INLINE F from_bits(U x) {
  F y;
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}

// 2^x for x <= 127, within 1 ulp; below -126, where the result would leave the normal numbers, less than 2^-126, and 0 from
// -127 on (also for -infinity). x = n + f with n the nearest integer; 2^f = 1 + f P(f), P of degree 5 fitted for the least relative error over
// |f| <= 1/2, 0.03 ulp; n is added to the exponent. A softmax has no use for e^x itself: log2 e goes into its scale, and
// the reduction to f is then exact.
constexpr float log2_e = 1.44269504f;

//
// Several at once, step by step: one alone is a chain of some 45 cycles, longer than a processor looks ahead.
template <int count>
DESAP_INLINE void exp2(F (&x)[count]) {
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  constexpr float coefficients[] = {1.3398888e-3f, 9.618438e-3f, 5.5503324e-2f, 0.24022648f, 0.6931472f, 1.0f};
  F shifted[count], p[count];
  DESAP_UNROLL for (int i = 0; i < count; i++) x[i] = max(broadcast(-127.0f), x[i]);  // NaN stays
  DESAP_UNROLL for (int i = 0; i < count; i++) shifted[i] = x[i] + round;
  DESAP_UNROLL for (int i = 0; i < count; i++) x[i] -= shifted[i] - round;
  DESAP_UNROLL for (int i = 0; i < count; i++) p[i] = broadcast(1.5353352e-4f);
  DESAP_UNROLL for (int k = 0; k < 6; k++) {
    DESAP_UNROLL for (int i = 0; i < count; i++) p[i] = p[i] * x[i] + coefficients[k];
  }
  DESAP_UNROLL for (int i = 0; i < count; i++) x[i] = from_bits(bits(p[i]) + (bits(shifted[i]) << 23));
}

DESAP_INLINE F exp2(F x) {
  F one[1] = {x};
  exp2(one);
  return one[0];
}

#if DESAP_LANES > 1
DESAP_INLINE float exp2(float x) { return exp2(broadcast(x))[0]; }
#endif

// ------------------------------------------------------------------------------------------------------------- half

DESAP_INLINE F load_half(const uint16_t* p) {
#if DESAP_LANES == 16 && defined(DESAP_NARROW_REGISTERS)
  float buffer[lanes];
  _mm256_storeu_ps(buffer, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  _mm256_storeu_ps(buffer + 8, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8))));
  return load(buffer);
#elif DESAP_LANES == 16
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif DESAP_LANES == 8
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif DESAP_LANES == 4
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  const uint32_t sign = (*p & 0x8000u) << 16, magnitude = *p & 0x7fffu;
  uint32_t result;
  if (magnitude >= 0x7c00) {
    const uint32_t quiet = magnitude > 0x7c00 ? 0x400000 : 0;  // a signalling NaN becomes quiet, as in hardware
    result = (magnitude << 13) | 0x7f800000 | quiet;
  } else if (magnitude >= 0x400) {
    result = (magnitude << 13) + ((127 - 15) << 23);
  } else {
    result = bits(static_cast<float>(magnitude) * 0x1p-24f);
  }
  return from_bits(result | sign);
#endif
}

DESAP_INLINE void store_half(uint16_t* p, F x) {
#if DESAP_LANES == 16 && defined(DESAP_NARROW_REGISTERS)
  float buffer[lanes];
  store(buffer, x);
  for (int i = 0; i < lanes; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(buffer + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i), half);
  }
#elif DESAP_LANES == 16
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif DESAP_LANES == 8
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif DESAP_LANES == 4
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
#else
  const uint32_t word = bits(x), sign = word >> 16 & 0x8000, magnitude = word & 0x7fffffff;
  uint32_t result;
  if (magnitude > 0x7f800000) {
    result = 0x7e00 | (magnitude >> 13 & 0x3ff);
  } else if (magnitude >= 0x477ff000) {  // 65520, halfway from the largest half to the next power of two
    result = 0x7c00;
  } else if (magnitude >= 0x38800000) {  // normal: round the mantissa's lower 13 bits to nearest even
    result = (magnitude - ((127 - 15) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  } else {  // adding 1/2 rounds to a multiple of 2^-24, the step of the subnormal halves
    const float rounded = from_bits(magnitude) + 0.5f;
    result = bits(rounded) - 0x3f000000;
  }
  *p = static_cast<uint16_t>(result | sign);
#endif
}

}  // namespace DESAP_ISA
}  // namespace desap
