// The inner product that linear, attention, saliency, align and merge share: C = init + A B.
//
//   A  [rows, depth]      in place, any distance between rows
//   B  [depth, columns]   packed as panels of at most tile_vectors vectors: panel p is [depth][width], rows contiguous
//   C  [rows, columns]    in place
//
// A tile keeps tile_rows x tile_vectors accumulators in registers and walks the depth once: per step it loads one row of
// the panel and broadcasts one element of each row of A. A product is summed in one order, ascending depth, whatever the
// tile's shape: every element of C depends on its row of A and its column of B alone, bit for bit.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int tile_rows = DESAP_TILE_ROWS;
constexpr int tile_vectors = DESAP_TILE_VECTORS;
constexpr int64_t panel_width = int64_t{lanes} * tile_vectors;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }
inline int64_t blocks_of(int64_t x, int64_t size) { return (x + size - 1) / size; }

// ---------------------------------------------------------------------------------------------------------- packing

// Panel p of B = X^T: column j of B is row j of x. `data` begins with panel 0.
inline void pack_rows(ConstMatrix x, int64_t p, float* data) {
  const int64_t begin = p * panel_width, count = min(panel_width, x.rows - begin), width = round_up(count, lanes);
  float* panel = data + begin * x.cols;
  for (int64_t k = 0; k < x.cols; k++) {
    for (int64_t j = 0; j < count; j++) panel[j] = x.row(begin + j)[k];
    for (int64_t j = count; j < width; j++) panel[j] = 0;
    panel += width;
  }
}

// Panel p of B = X.
inline void pack_columns(ConstMatrix x, int64_t p, float* data) {
  const int64_t begin = p * panel_width, count = min(panel_width, x.cols - begin), width = round_up(count, lanes);
  float* panel = data + begin * x.rows;
  for (int64_t k = 0; k < x.rows; k++) {
    for (int64_t j = 0; j < width; j += lanes) {
      const int64_t n = count - j;
      store(panel + j, load_first(n, x.row(k) + begin + j));
    }
    panel += width;
  }
}

// Floats that the packed form takes.
inline int64_t packed_size(int64_t depth, int64_t columns) { return depth * round_up(columns, lanes); }

// ------------------------------------------------------------------------------------------------------------- tile

struct TileOperands {
  int64_t depth;
  const float* a;
  int64_t a_ld;
  const float* b;     // [depth][vectors * lanes]
  const float* init;  // rows init_ld apart, 0 to repeat one row (a bias)
  int64_t init_ld;
  float* c;
  int64_t c_ld;
};

template <int rows, int vectors>
void tile(const TileOperands& t) {
  F sums[rows][vectors];
  DESAP_UNROLL for (int r = 0; r < rows; r++) {
    DESAP_UNROLL for (int v = 0; v < vectors; v++) {
      sums[r][v] = load(t.init + r * t.init_ld + v * lanes);
    }
  }
  const float* a = t.a;
  const float* b = t.b;
  const int64_t a_ld = t.a_ld;
  for (const float* end = a + t.depth; a != end; a++) {
    F column[vectors];
    DESAP_UNROLL for (int v = 0; v < vectors; v++) column[v] = load(b + v * lanes);
    DESAP_UNROLL for (int r = 0; r < rows; r++) {
      const F x = broadcast(a[r * a_ld]);
      DESAP_UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = x * column[v] + sums[r][v];
    }
    b += vectors * lanes;
  }
  DESAP_UNROLL for (int r = 0; r < rows; r++) {
    DESAP_UNROLL for (int v = 0; v < vectors; v++) {
      store(t.c + r * t.c_ld + v * lanes, sums[r][v]);
    }
  }
}

using Tile = void (*)(const TileOperands&);

template <int vectors>
inline Tile tile_of_rows(int64_t rows) {
  switch (rows) {
    case 1: return tile<1, vectors>;
    case 2: return tile<2, vectors>;
    case 3: return tile<3, vectors>;
#if DESAP_TILE_ROWS == 6
    case 4: return tile<4, vectors>;
    case 5: return tile<5, vectors>;
#endif
    default: return tile<tile_rows, vectors>;
  }
}

inline Tile tile_of(int64_t rows, int64_t columns) {
  switch (blocks_of(columns, lanes)) {
    case 1: return tile_of_rows<1>(rows);
#if DESAP_TILE_VECTORS == 4
    case 2: return tile_of_rows<2>(rows);
    case 3: return tile_of_rows<3>(rows);
#endif
    default: return tile_of_rows<tile_vectors>(rows);
  }
}

// One panel for any number of rows; `columns` of it exist in init and C.
inline void multiply_panel(TileOperands t, int64_t rows, int64_t columns) {
  float partial[tile_rows * panel_width];  // a tile whose last vector reaches beyond the columns of C
  for (int64_t r = 0; r < rows; r += tile_rows) {
    const int64_t count = min(tile_rows, rows - r);
    const Tile tile = tile_of(count, columns);
    if (columns % lanes == 0) {
      tile(t);
    } else {
      for (int64_t i = 0; i < count; i++) {
        for (int64_t j = 0; j < columns; j++) partial[i * panel_width + j] = t.init[i * t.init_ld + j];
        for (int64_t j = columns; j < panel_width; j++) partial[i * panel_width + j] = 0;
      }
      tile({t.depth, t.a, t.a_ld, t.b, partial, panel_width, partial, panel_width});
      for (int64_t i = 0; i < count; i++) {
        for (int64_t j = 0; j < columns; j++) t.c[i * t.c_ld + j] = partial[i * panel_width + j];
      }
    }
    t.a += tile_rows * t.a_ld;
    t.init += tile_rows * t.init_ld;
    t.c += tile_rows * t.c_ld;
  }
}

}  // namespace DESAP_ISA
}  // namespace desap
