// Products of bfloat16 operands with float32 sums: a word of the depth (gemm.h) is two numbers, the first in the lower half.
//
// bfloat16 is the upper half of a float32: its range with 8 bits of precision. Rounding is to nearest even. One instruction
// multiplies two pairs per lane and adds both products, VDPBF16PS on x86 and BFDOT on Arm; where it is missing, tests
// do the same in two multiply-adds (DESAP_EMULATED_BF16).
#pragma once

namespace desap {
namespace DESAP_ISA {

// In the upper half; below it lies what was rounded off.
DESAP_INLINE U bfloat16(F x) {
  const U word = bits(x);
  const U rounded = word + 0x7fffu + (word >> 16 & 1u);
  return (word & 0x7fffffffu) <= 0x7f800000u ? rounded : word | 0x400000u;  // a NaN could otherwise become infinite
}

struct BFloat16 {
  static constexpr int64_t elements = 2;
  static DESAP_INLINE F words(F first, F second) { return from_bits(bfloat16(first) >> 16 | (bfloat16(second) & 0xffff0000u)); }
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
    for (int64_t k = 0; k + 1 < x.cols; k += 2) out[k / 2] = BFloat16::word(row[k], row[k + 1]);
    if (x.cols % 2 != 0) out[x.cols / 2] = BFloat16::word(row[x.cols - 1], 0);
  }
}

// x^T in words along the rows of x: word k of its column j at [k][j], `ld` words apart. Whole vectors of columns.
inline void bfloat16_transposed(ConstMatrix x, float* words, int64_t ld) {
  for (int64_t k = 0; k < x.rows; k += 2) {
    for (int64_t j = 0; j < x.cols; j += lanes) {
      store(words + k / 2 * ld + j, BFloat16::words(load(x.row(k) + j), k + 1 < x.rows ? load(x.row(k + 1) + j) : F{}));
    }
  }
}

}  // namespace DESAP_ISA
}  // namespace desap
