// rot(x) = x cos + turn(x) sin, turn([a, b]) = [-b, a]: of one head's queries and keys, on their way to the scores.
#pragma once

namespace desap {
namespace DESAP_ISA {

// One row of one head. x, cos, sin, y: [size], size even.
DESAP_INLINE void rotate(const float* x, const float* cos, const float* sin, int64_t size, float* y) {
  const int64_t half = size / 2;
  for (int64_t d = 0; d < half; d += lanes) {
    const int64_t n = half - d;
    const F a = load_first(n, x + d), b = load_first(n, x + half + d);
    store_first(n, y + d, a * load_first(n, cos + d) - b * load_first(n, sin + d));
    store_first(n, y + half + d, b * load_first(n, cos + half + d) + a * load_first(n, sin + half + d));
  }
}

// `rows` rows of one head from row i on: themselves without a table, else turned into `room`, which holds rows x size floats.
inline ConstMatrix rotated(ConstMatrix x, int64_t i, int64_t rows, Rotary rotary, float* room) {
  if (!rotary.cos) return {x.row(i), rows, x.cols, x.ld};
  for (int64_t r = 0; r < rows; r++) {
    prefetch_row(x, i + r + rows_ahead);
    rotate(x.row(i + r), rotary.cos + (i + r) * x.cols, rotary.sin + (i + r) * x.cols, x.cols, room + r * x.cols);
  }
  return {room, rows, x.cols, x.cols};
}

}  // namespace DESAP_ISA
}  // namespace desap
