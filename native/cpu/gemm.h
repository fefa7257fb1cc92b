// The inner product that linear, attention, saliency, align and merge share: C = init + A B.
//
//   A  [rows, depth]      in place, any distance between rows and between columns (a transposed A is one with both swapped)
//   B  [depth, columns]   packed as panels of at most tile_vectors vectors: panel p is [depth][width], rows contiguous
//   C  [rows, columns]    in place
//
// A tile keeps tile_rows x tile_vectors accumulators in registers and walks the depth once: per step it loads one row of
// the panel and broadcasts one element of each row of A. A product is summed in one order, ascending depth, whatever the
// tile's shape: every element of C depends on its row of A and its column of B alone, bit for bit.
//
// What an element of A and B is, the arithmetic says: a word of the depth is one float32 number, or two bfloat16 numbers
// (bfloat16.h). Depths below count words, and sums are float32 in both.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int tile_rows = DESAP_TILE_ROWS;
constexpr int tile_vectors = DESAP_TILE_VECTORS;
constexpr int64_t panel_width = int64_t{lanes} * tile_vectors;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }
inline int64_t blocks_of(int64_t x, int64_t size) { return (x + size - 1) / size; }

// 0..total in blocks of `size`; less than half a block at the end belongs to the block before it (577 = 11 x 48 + 49).
struct Blocks {
  Blocks(int64_t total_, int64_t width_) : total(total_), width(width_), count((total + width / 2) / width) {
    if (count == 0 && total > 0) count = 1;
  }
  int64_t begin(int64_t b) const { return b * width; }
  int64_t size(int64_t b) const { return b + 1 < count ? width : total - begin(b); }
  int64_t total, width, count;
};

struct Float32 {
  static constexpr int64_t elements = 1;  // of a word
  static DESAP_INLINE float word(float x, float) { return x; }
  static DESAP_INLINE F words(F x, F) { return x; }
  static DESAP_INLINE F row(const float* x, float scale) { return load(x) * scale; }
  static DESAP_INLINE F multiply_add(F a, F b, F sum) { return a * b + sum; }
};

template <class Arithmetic>
inline int64_t words_of(int64_t elements) {
  return blocks_of(elements, Arithmetic::elements);
}

// ---------------------------------------------------------------------------------------------------------- packing

constexpr int64_t rows_ahead = 16;

// Row i to L1. Rows of one head lie a page apart, where the processor by itself fetches nothing.
inline void prefetch_row(ConstMatrix x, int64_t i) {
  for (int64_t j = 0; j < x.cols; j += 16) __builtin_prefetch(x.row(i) + j);
}

// Panel p of B = scale X^T: column j of B is row j of x. `data` begins with panel 0.
template <class Arithmetic = Float32>
inline void pack_rows(ConstMatrix x, int64_t p, float* data, float scale = 1) {
  const int64_t begin = p * panel_width, count = min(panel_width, x.rows - begin), width = round_up(count, lanes);
  float* panel = data + begin * words_of<Arithmetic>(x.cols);
  int64_t k = 0;
  if (transposes && count == width) {
    k = transpose_squares<Arithmetic>({x.row(begin), count, x.cols, x.ld}, panel, width, scale);
    panel += k / Arithmetic::elements * width;
  }
  for (; k < x.cols; k += Arithmetic::elements) {
    const bool pair = k + 1 < x.cols;
    for (int64_t j = 0; j < count; j++) {
      const float* element = x.row(begin + j) + k;
      panel[j] = Arithmetic::word(scale * element[0], pair ? scale * element[1] : 0);
    }
    for (int64_t j = count; j < width; j++) panel[j] = 0;
    panel += width;
  }
}

// Rows begin..end of B = diag(scales) X, of every panel: one walk over x. Without scales, X. begin is even.
template <class Arithmetic = Float32>
inline void pack_columns(ConstMatrix x, int64_t begin, int64_t end, float* data, const float* scales = nullptr) {
  for (int64_t k = begin; k < end; k += Arithmetic::elements) {
    for (int64_t i = 0; i < Arithmetic::elements; i++) prefetch_row(x, k + i + rows_ahead);
    for (int64_t p = 0; p < x.cols; p += panel_width) {
      const int64_t count = min(panel_width, x.cols - p), width = round_up(count, lanes);
      float* row = data + p * words_of<Arithmetic>(x.rows) + k / Arithmetic::elements * width;
      const auto scaled = [&](int64_t i, int64_t j) {
        return i < end ? load_first(count - j, x.row(i) + p + j) * (scales ? scales[i] : 1.0f) : F{};
      };
      for (int64_t j = 0; j < width; j += lanes) store(row + j, Arithmetic::words(scaled(k, j), scaled(k + 1, j)));
    }
  }
}

// Floats that the packed form takes.
template <class Arithmetic = Float32>
inline int64_t packed_size(int64_t depth, int64_t columns) {
  return words_of<Arithmetic>(depth) * round_up(columns, lanes);
}

// ------------------------------------------------------------------------------------------------------------- tile

struct Operands {
  int64_t depth;
  const float* a;
  int64_t a_ld, a_step;  // from row to row, from column to column
  const float* b;        // [depth][vectors * lanes]
  const float* init;     // rows init_ld apart, 0 to repeat one row (a bias)
  int64_t init_ld;
  float* c;
  int64_t c_ld;
  const float* ahead = nullptr;  // what is multiplied after this product, where it may lie beyond L2
};

constexpr int per_line = lanes < 16 ? 16 / lanes : 1;  // vectors of a cache line

// A step of the 16-lane tile takes 12 cycles and loads in 5 of them: there is time to fetch what comes next from beyond L2.
constexpr bool fetches_ahead = lanes == 16;
constexpr int steps_ahead = fetches_ahead ? 32 : 64;  // of B, to L1
constexpr int floats_ahead = 2;                       // of `ahead`, to L2, per step: 32 tiles fetch one panel
constexpr int steps_in_l1 = 128;                      // a panel of fewer is still there when the next tile begins

// `count` tiles below each other. B is fetched ahead, since the processor by itself stops at the end of a page. One call
// for all of them: between tiles that are called one by one the units would idle for some 50 cycles, an eighth of a tile of
// depth 64.
template <class Arithmetic, int rows, int vectors>
void tiles(Operands t, int64_t count) {
  for (; count > 0; count--) {
    F sums[rows][vectors];
    DESAP_UNROLL for (int r = 0; r < rows; r++) {
      DESAP_UNROLL for (int v = 0; v < vectors; v++) {
        sums[r][v] = load(t.init + r * t.init_ld + v * lanes);
      }
    }
    const float* a = t.a;
    const float* b = t.b;
    [[maybe_unused]] const float* ahead = t.ahead;
    constexpr int64_t step = vectors * lanes;
    const float* const end = b + t.depth * step;
    int64_t distance = steps_ahead * step;
    const float* stop = fetches_ahead && t.depth > steps_in_l1 ? end - distance : end;
    for (;; stop = end, distance -= t.depth * step) {  // the second time at the beginning, for the next tile
      for (; b != stop; b += step, a += t.a_step) {
        F column[vectors];
        DESAP_UNROLL for (int v = 0; v < vectors; v += per_line) __builtin_prefetch(b + distance + v * lanes);
        if constexpr (fetches_ahead) __builtin_prefetch(ahead, 0, 2), ahead += floats_ahead;
        DESAP_UNROLL for (int v = 0; v < vectors; v++) column[v] = load(b + v * lanes);
        DESAP_UNROLL for (int r = 0; r < rows; r++) {
          const F x = broadcast(a[r * t.a_ld]);
          DESAP_UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = Arithmetic::multiply_add(x, column[v], sums[r][v]);
        }
      }
      if (stop == end) break;
    }
    DESAP_UNROLL for (int r = 0; r < rows; r++) {
      DESAP_UNROLL for (int v = 0; v < vectors; v++) {
        store(t.c + r * t.c_ld + v * lanes, sums[r][v]);
      }
    }
    t.a += rows * t.a_ld;
    t.init += rows * t.init_ld;
    t.c += rows * t.c_ld;
    if constexpr (fetches_ahead) t.ahead = ahead;
  }
}

using Tiles = void (*)(Operands, int64_t count);

template <class Arithmetic, int vectors>
inline Tiles tiles_of_rows(int64_t rows) {
  switch (rows) {
    case 1: return tiles<Arithmetic, 1, vectors>;
    case 2: return tiles<Arithmetic, 2, vectors>;
    case 3: return tiles<Arithmetic, 3, vectors>;
#if DESAP_TILE_ROWS == 6
    case 4: return tiles<Arithmetic, 4, vectors>;
    case 5: return tiles<Arithmetic, 5, vectors>;
#endif
    default: return tiles<Arithmetic, tile_rows, vectors>;
  }
}

template <class Arithmetic>
inline Tiles tiles_of(int64_t rows, int64_t vectors) {
  switch (vectors) {
    case 1: return tiles_of_rows<Arithmetic, 1>(rows);
#if DESAP_TILE_VECTORS == 4
    case 2: return tiles_of_rows<Arithmetic, 2>(rows);
    case 3: return tiles_of_rows<Arithmetic, 3>(rows);
#endif
    default: return tiles_of_rows<Arithmetic, tile_vectors>(rows);
  }
}

// Products alone, of registers: what the units can do. Returns the sum of all. Sums begin with different numbers: of equal ones the
// compiler would compute one for all, and each product would wait for the one before.
template <class Arithmetic>
float multiply_registers(int64_t steps) {
  constexpr int count = 16;  // enough to hide the latency
  F sums[count];
  _Pragma("GCC unroll 16") for (int i = 0; i < count; i++) sums[i] = broadcast(static_cast<float>(i));
  const F x = from_bits(U{} + 0x3f823f81u);  // about 1, or two such numbers
  for (; steps > 0; steps--) {
    _Pragma("GCC unroll 16") for (int i = 0; i < count; i++) sums[i] = Arithmetic::multiply_add(x, x, sums[i]);
  }
  F total{};
  _Pragma("GCC unroll 16") for (int i = 0; i < count; i++) total += sums[i];
  return sum(total);
}

// One panel for any number of rows, whole vectors of columns.
template <class Arithmetic>
inline void multiply_vectors(Operands t, int64_t rows, int64_t vectors) {
  const auto multiply = [&](int64_t tile, int64_t count) {
    tiles_of<Arithmetic>(tile, vectors)(t, count);
    t.a += tile * count * t.a_ld;
    t.init += tile * count * t.init_ld;
    t.c += tile * count * t.c_ld;
    if constexpr (fetches_ahead) t.ahead += floats_ahead * t.depth * count;
  };
  if (!t.ahead) t.ahead = t.b;
  int64_t full = rows / tile_rows, rest = rows % tile_rows;
  if (rest == 1 && full > 0) full--, rest += tile_rows;
  multiply(tile_rows, full);
  if (rest > tile_rows) multiply(4, 1), rest -= 4;  // one row by itself would wait for its own sums: 4 and 3
  if (rest > 0) multiply(rest, 1);
}

// One panel for any number of rows; `columns` of it exist in init and C.
template <class Arithmetic = Float32>
inline void multiply_panel(Operands t, int64_t rows, int64_t columns) {
  const int64_t vectors = blocks_of(columns, lanes);
  if (columns % lanes == 0) return multiply_vectors<Arithmetic>(t, rows, vectors);
  float partial[tile_rows * panel_width];  // the last vector reaches beyond the columns of C
  for (int64_t r = 0; r < rows; r += tile_rows) {
    const int64_t count = min(tile_rows, rows - r);
    for (int64_t i = 0; i < count; i++) {
      for (int64_t j = 0; j < columns; j++) partial[i * panel_width + j] = t.init[(r + i) * t.init_ld + j];
      for (int64_t j = columns; j < panel_width; j++) partial[i * panel_width + j] = 0;
    }
    const Operands one{t.depth, t.a + r * t.a_ld, t.a_ld, t.a_step, t.b, partial, panel_width, partial, panel_width};
    multiply_vectors<Arithmetic>(one, count, vectors);
    for (int64_t i = 0; i < count; i++) {
      for (int64_t j = 0; j < columns; j++) t.c[(r + i) * t.c_ld + j] = partial[i * panel_width + j];
    }
  }
}

}  // namespace DESAP_ISA
}  // namespace desap
