// Products of bfloat16 operands with float32 sums: a word of the depth (gemm.h) is two numbers, the first in the lower half.
//
// bfloat16 is the upper half of a float32: its range with 8 bits of precision. Rounding is to nearest even. One instruction
// multiplies two pairs per lane and adds both products, VDPBF16PS on x86 and BFDOT on Arm; where it is missing, tests
// do the same in two multiply-adds (DESAP_EMULATED_BF16).
#pragma once

namespace desap {
namespace DESAP_ISA {

#if defined(DESAP_EMULATED_BF16)
// In the upper half; below it lies what was rounded off.
DESAP_INLINE U bfloat16(F x) {
  const U word = bits(x);
  const U rounded = word + 0x7fffu + (word >> 16 & 1u);
  return (word & 0x7fffffffu) <= 0x7f800000u ? rounded : word | 0x400000u;  // a NaN could otherwise become infinite
}
#endif

// Words of 2 x lanes numbers in a row. The x86 instruction makes 0 of subnormal numbers, as VDPBF16PS would when it reads them.
DESAP_INLINE F bfloat16_row(F first, F next) {
#if defined(DESAP_EMULATED_BF16)
  uint16_t row[2 * lanes];
  for (int i = 0; i < lanes; i++) {
    row[i] = static_cast<uint16_t>(bfloat16(first)[i] >> 16);
    row[lanes + i] = static_cast<uint16_t>(bfloat16(next)[i] >> 16);
  }
  F words;
  __builtin_memcpy(&words, row, sizeof words);
  return words;
#elif DESAP_LANES == 16
  return (F)_mm512_cvtne2ps_pbh(next, first);
#else
  return vreinterpretq_f32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(first), next));
#endif
}

// Words of (first, second), from those of first's numbers and then second's.
DESAP_INLINE F bfloat16_pairs(F first, F second) {
#if defined(DESAP_EMULATED_BF16)
  return from_bits(bfloat16(first) >> 16 | (bfloat16(second) & 0xffff0000u));
#elif DESAP_LANES == 16
  static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (F)_mm512_maskz_permutexvar_epi16(0xffffffffu, _mm512_loadu_si512(order), (__m512i)bfloat16_row(first, second));
#else
  const uint16x8_t row = vreinterpretq_u16_f32(bfloat16_row(first, second));
  return vreinterpretq_f32_u16(vzip1q_u16(row, vextq_u16(row, row, lanes)));
#endif
}

struct BFloat16 {
  static constexpr int64_t elements = 2;
  static DESAP_INLINE F words(F first, F second) { return bfloat16_pairs(first, second); }
  static DESAP_INLINE F row(const float* x, float scale) { return bfloat16_row(load(x) * scale, load(x + lanes) * scale); }
  static DESAP_INLINE float word(float first, float second) { return words(broadcast(first), broadcast(second))[0]; }
  static DESAP_INLINE F multiply_add(F a, F b, F sum) {
#if defined(DESAP_EMULATED_BF16)
    const F low = from_bits(bits(a) << 16) * from_bits(bits(b) << 16) + sum;
    return from_bits(bits(a) & 0xffff0000u) * from_bits(bits(b) & 0xffff0000u) + low;
#elif DESAP_LANES == 16
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
    return vbfdotq_f32(sum, vreinterpretq_bf16_f32(a), vreinterpretq_bf16_f32(b));
#endif
  }
};

// Left operands. Row i of x in words along its columns; `ld` words apart.
inline void bfloat16_rows(ConstMatrix x, float* words, int64_t ld) {
  for (int64_t i = 0; i < x.rows; i++) {
    const float* row = x.row(i);
    float* out = words + i * ld;
    for (int64_t k = 0; k < x.cols; k += 2 * lanes) {
      const int64_t n = x.cols - k;
      const F next = n > lanes ? load_first(n - lanes, row + k + lanes) : F{};
      store_first(words_of<BFloat16>(n), out + k / 2, bfloat16_row(load_first(n, row + k), next));
    }
  }
}

}  // namespace DESAP_ISA
}  // namespace desap
