// Transposed packing of B (gemm.h), lanes x lanes words at a time.
//
// Two vectors exchange halves of themselves, then quarters, eighths and single lanes: 64 permutations for 256 words, where the
// plain loop loads and stores each word.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr bool transposes = lanes == 16;

// Row i of the square becomes its column i.
DESAP_INLINE void transpose(F (&x)[lanes]) {
#if DESAP_LANES == 16 && !defined(DESAP_NARROW_REGISTERS)
  _Pragma("GCC unroll 4") for (int distance = 8; distance > 0; distance /= 2) {
    // Lanes of the first vector are 0..15, of the second 16..31.
    const I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const I upper = (lane & distance) != 0, low = upper ? lane - distance + 16 : lane, high = upper ? lane + 16 : lane + distance;
    _Pragma("GCC unroll 16") for (int i = 0; i < lanes; i++) {
      if ((i & distance) != 0) continue;
      const F first = x[i], second = x[i + distance];
      x[i] = _mm512_permutex2var_ps(first, (__m512i)low, second);
      x[i + distance] = _mm512_permutex2var_ps(first, (__m512i)high, second);
    }
  }
#else
  float square[lanes][lanes], column[lanes];
  for (int i = 0; i < lanes; i++) store(square[i], x[i]);
  for (int i = 0; i < lanes; i++) {
    for (int j = 0; j < lanes; j++) column[j] = square[j][i];
    x[i] = load(column);
  }
#endif
}

// scale x^T in words, squares as far as they go; returns the columns of x that this takes. x.rows: whole vectors.
template <class Arithmetic>
inline int64_t transpose_squares(ConstMatrix x, float* y, int64_t ld, float scale) {
  constexpr int64_t columns = lanes * Arithmetic::elements;
  int64_t k = 0;
  for (; k + columns <= x.cols; k += columns, y += lanes * ld) {
    for (int64_t j = 0; j < x.rows; j += lanes) {
      F square[lanes];
      _Pragma("GCC unroll 16") for (int r = 0; r < lanes; r++) square[r] = Arithmetic::row(x.row(j + r) + k, scale);
      transpose(square);
      _Pragma("GCC unroll 16") for (int r = 0; r < lanes; r++) store(y + r * ld + j, square[r]);
    }
  }
  return k;
}

}  // namespace DESAP_ISA
}  // namespace desap
