// The tiles of linear.cu and where their elements lie in shared memory. Plain functions, so that a test on the host can
// prove the places: every place used once, in bounds, no bank conflicts.
#pragma once

#include "fragments.cuh"
#include "kernels.cuh"

namespace desap::cuda {

// One step along `in` copies this many elements of each plane, 64 bytes.
constexpr int step_size = 32;
constexpr int chunk_size = 8;   // elements in 16 bytes, the unit of copies and of ldmatrix

struct alignas(16) Chunk {
  uint16_t element[chunk_size];
};

// A block computes `rows` x `columns` of y; each of its warps warp_rows rows and 64 columns, a slice of linear_squares.
//
// Of each element that it copies from the L2 cache, which is what limits it, a large tile makes 256 * 128 / (256 + 128)
// = 85 multiply-adds, a small one 43. Small ones make up for that where large ones would leave processors without work.
template <int warps_down_, int warps_across_, int warp_rows_>
struct TileOf {
  static constexpr int warps_down = warps_down_, warps_across = warps_across_, warp_rows = warp_rows_;
  static constexpr int warp_columns = 64;
  static constexpr int rows = warps_down * warp_rows, columns = warps_across * warp_columns;
  static constexpr int threads = warps_down * warps_across * 32;
};
using SmallTile = TileOf<2, 2, 32>;   //  64 x 128
using LargeTile = TileOf<4, 2, 64>;   // 256 x 128
enum class TileShape { small, large };

template <class Tile>
int64_t tiles_of(int64_t rows, int64_t columns) {
  return ((rows + Tile::rows - 1) / Tile::rows) * ((columns + Tile::columns - 1) / Tile::columns);
}

// Large tiles from the number on that occupies most of a large GPU (132 processors).
inline TileShape tile_shape(int64_t rows, int64_t columns) {
  return tiles_of<LargeTile>(rows, columns) >= 80 ? TileShape::large : TileShape::small;
}

// One step of a tile: rows of x, then rows of W in the order of column_of. The planes of a row lie side by side, so a
// row has 4 chunks, or 8 of them (fp32). As many steps are under way as fit into 96 KB, at most 6.
template <class Tile, Precision precision>
struct Steps {
  static constexpr int row_chunks = planes_of(precision) * step_size / chunk_size;
  struct Step {
    Chunk x[Tile::rows * row_chunks];
    Chunk weight[Tile::columns * row_chunks];
  };
  static constexpr int fitting = static_cast<int>(96 * 1024 / sizeof(Step));
  static constexpr int count = fitting < 6 ? fitting : 6;
  Step step[count];
};

// The place of a row's chunk. The 128 bytes that all banks serve at a time are 8 chunks; the exclusive or moves the
// chunk of each of 8 consecutive rows to another one of them.
template <int row_chunks>
constexpr __host__ __device__ int place_of(int row, int chunk) {
  return row * row_chunks + (chunk ^ (row / (8 / row_chunks) % row_chunks));
}

// Which column of y (row of W) lies in which row of Step::weight, within 32. A fragment D gives lane 4 g + t the
// columns 2t and 2t + 1 of each 8; this order makes of its four fragments the 8 consecutive columns from 8t on, one
// 16-byte store.
constexpr __host__ __device__ int column_of(int slot) {
  return slot / 32 * 32 + slot % 8 / 2 * 8 + slot / 8 % 4 * 2 + slot % 2;
}

// y = scale (x W^T) + bias as an operand (operand.hi set), or else as float32 with the first `squared` columns as sums
// of squares.
struct Product {
  ConstOperand x;
  int64_t rows;
  Weights weights;
  Operand operand;
  int squared;
  float* squares;   // [rows, squared / 64]
  Matrix values;
  Stamp stamp;
};
void multiply_rows(Queue&, Precision, TileShape, const Product&);

}  // namespace desap::cuda
