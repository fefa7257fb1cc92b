// What attention and saliency share: rows of one head in shared memory, products of 32 rows, and the softmax over keys
// that arrive tile by tile.
//
// A block holds 64 or 128 rows and walks over the other side in tiles. A warp computes 32 rows (two fragments of 16) x
// half of a tile: it reads half as much of a tile per product as 16 rows x the whole would, and that is what limits
// Hopper's mma.sync.
#pragma once

#include "kernels.cuh"
#include "multiply.cuh"
#include "reduce.cuh"

namespace desap::cuda {

constexpr int halves = 2;       // of a tile: one warp each
constexpr int chunk_size = 8;   // elements in 16 bytes, the unit of copies and of ldmatrix; in shared memory a uint4

// Where a chunk of a row of one head lies. 8 chunks are the 128 bytes that all banks serve at a time. ldmatrix reads
// the same chunk of 8 consecutive rows: with 2^s the largest power of two up to 8 that divides the chunks of a row,
// every 8 / 2^s rows the same banks come again; the exclusive or moves those rows apart.
struct HeadRows {
  int chunks, shift, mask;

  constexpr __host__ __device__ explicit HeadRows(int padded_size)
      : chunks(padded_size / chunk_size),
        shift(chunks % 8 == 0 ? 0 : chunks % 4 == 0 ? 1 : 2),
        mask((8 >> shift) - 1) {}
  constexpr __host__ __device__ int at(int row, int chunk) const {
    return row * chunks + (chunk ^ ((row >> shift) & mask));
  }
  // at(row, chunk + 2 step) from place = at(row, chunk), for chunk 0 or 1: one exclusive or with a constant.
  constexpr __host__ __device__ int step(int place, int step) const {
    return (place ^ (2 * step & mask)) + (2 * step & ~mask);
  }
};

// One plane of `rows` rows.
constexpr __host__ __device__ int plane_chunks(int rows, int padded_size) { return rows * padded_size / chunk_size; }

// The rows of one head of one image; `x` begins with the first.
struct HeadOperand {
  ConstOperand x;
  int rows;
};
template <Precision precision>
__device__ __forceinline__ HeadOperand head_of(const ConstOperand& x, const Image& image, int column) {
  const int64_t offset = image.row * x.ld + column;
  return {{x.hi + offset, precision == Precision::fp32 ? x.lo + offset : nullptr, x.ld}, image.rows};
}

// Copies `rows` rows from `first` on, both planes; those beyond the image become zeros.
template <Precision precision, int rows, int threads>
__device__ __forceinline__ void copy_rows(uint4* to, const HeadRows& places, const HeadOperand& from, int first) {
  const int count = rows * places.chunks, ld = static_cast<int>(from.x.ld);   // 32 bits are enough for one tile
  const int64_t base = first * from.x.ld;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
    const int row = i / places.chunks, chunk = i % places.chunks, place = places.at(row, chunk);
    const bool valid = row < from.rows - first;
    const int offset = valid ? row * ld + chunk * chunk_size : 0;
    ptx::copy_async(to + place, from.x.hi + base + offset, valid);
    if constexpr (precision == Precision::fp32) ptx::copy_async(to + count + place, from.x.lo + base + offset, valid);
  }
}

// m fragments one below the other, 16 m rows x 16 elements: A in the product.
template <Precision precision, int m_>
struct RowFragments {
  static constexpr int planes = planes_of(precision), m = m_;
  uint32_t plane[planes][m][4];
};
// 16 columns x 16 elements, B in the product: r[0..1] of the lower 8 columns, r[2..3] of the others.
template <Precision precision>
struct ColumnFragments {
  static constexpr int planes = planes_of(precision);
  uint32_t plane[planes][4];
};

// Fragments from a tile in shared memory whose planes lie `plane` chunks apart. `place` is the lane's own, of its row
// and its chunk of step 0: places.at(row + a_row(lane), a_chunk(lane)), or b_row and b_chunk where so said.
//
// Elements 16 step .. of 16 m rows.
template <Precision precision, int m>
__device__ __forceinline__ void load_rows(RowFragments<precision, m>& a, const uint4* tile, int plane,
                                          const HeadRows& places, int place, int step) {
#pragma unroll
  for (int p = 0; p < RowFragments<precision, m>::planes; p++) {
#pragma unroll
    for (int i = 0; i < m; i++) {
      ptx::load_matrices(a.plane[p][i], tile + p * plane + i * 16 * places.chunks + places.step(place, step));
    }
  }
}

// Elements 16 step .. of 16 rows, as columns (b_row, b_chunk).
template <Precision precision>
__device__ __forceinline__ void load_columns(ColumnFragments<precision>& b, const uint4* tile, int plane,
                                             const HeadRows& places, int place, int step) {
#pragma unroll
  for (int p = 0; p < ColumnFragments<precision>::planes; p++) {
    ptx::load_matrices(b.plane[p], tile + p * plane + places.step(place, step));
  }
}

// The columns 16 step .. of 16 rows, over which the product sums.
template <Precision precision>
__device__ __forceinline__ void load_columns_transposed(ColumnFragments<precision>& b, const uint4* tile, int plane,
                                                        const HeadRows& places, int place, int step) {
#pragma unroll
  for (int p = 0; p < ColumnFragments<precision>::planes; p++) {
    ptx::load_matrices_transposed(b.plane[p], tile + p * plane + places.step(place, step));
  }
}

// d[.][n] and d[.][n + 1] += a b, product by product.
template <Precision precision, int m, int fragments>
__device__ __forceinline__ void multiply_rows(float (&d)[m][fragments][4], int n, const RowFragments<precision, m>& a,
                                              const ColumnFragments<precision>& b) {
  constexpr int products = precision == Precision::fp32 ? 3 : 1;
#pragma unroll
  for (int product = 0; product < products; product++) {
    const auto& rows = a.plane[product / 2];
    const auto& columns = b.plane[product % 2];
    const uint32_t lower[2] = {columns[0], columns[1]}, upper[2] = {columns[2], columns[3]};
#pragma unroll
    for (int i = 0; i < m; i++) {
      multiply_planes<precision>(d[i][n], rows[i], lower);
      multiply_planes<precision>(d[i][n + 1], rows[i], upper);
    }
  }
}

// Of a fragment D a lane holds four elements, of two of its 16 rows: element e lies in row 8 (e / 2) + lane / 4, column
// 2 (lane % 4) + e % 2. Of m fragments one below the other it holds 2 m rows, numbered 2 i + e / 2; row_of says which.
constexpr __host__ __device__ int row_of(int lane_row, int lane) { return lane_row * 8 + lane / 4; }
constexpr __host__ __device__ int column_of(int n, int e, int lane) { return n * 8 + lane % 4 * 2 + e % 2; }

// A softmax over keys that arrive in tiles, for a lane's rows. So far the weights are 2^(scale s - shift), and `sum` is
// the sum of those that this lane holds.
//
// shift follows the largest scale s, but not at once: it moves only when one exceeds it by more than slack, so that
// after the first tile there is hardly anything to rescale, and the lanes need not agree on the largest score at all
// unless one of them has such. It is an integer: then all factors are powers of two, and neither rescaling nor shift +
// constant rounds. The decision is a row's own: it does not depend on the warp's other rows.
//
// shift begins at a finite number far below all scores, so that keys beyond the image (score -inf) have weight 0 even
// where there are no others.
template <int m>
struct RowSoftmax {
  static constexpr float slack = 7;

  float shift[2 * m], sum[2 * m];

  __device__ __forceinline__ RowSoftmax() {
#pragma unroll
    for (int row = 0; row < 2 * m; row++) {
      shift[row] = -1e30f;
      sum[row] = 0;
    }
  }

  // Makes `shift` cover one more tile. True where some row of the warp moved; `factor` is for what was summed before.
  template <int fragments>
  __device__ __forceinline__ bool advance(const float (&s)[m][fragments][4], float scale, float (&factor)[2 * m]) {
    float top[2 * m];
    bool exceeds = false;
#pragma unroll
    for (int row = 0; row < 2 * m; row++) {
      const int e = row % 2 * 2;
      factor[row] = 1;
      top[row] = fmaxf(s[row / 2][0][e], s[row / 2][0][e + 1]);
#pragma unroll
      for (int n = 1; n < fragments; n++) top[row] = fmaxf(top[row], fmaxf(s[row / 2][n][e], s[row / 2][n][e + 1]));
      top[row] *= scale;
      exceeds = exceeds || top[row] > shift[row] + slack;
    }
    if (!__any_sync(0xffffffffu, exceeds)) return false;
#pragma unroll
    for (int row = 0; row < 2 * m; row++) {
      top[row] = fmaxf(top[row], __shfl_xor_sync(0xffffffffu, top[row], 1));
      top[row] = fmaxf(top[row], __shfl_xor_sync(0xffffffffu, top[row], 2));
      if (top[row] > shift[row] + slack) {
        const float moved = rintf(top[row]);
        factor[row] = ptx::exp2(shift[row] - moved);
        sum[row] *= factor[row];
        shift[row] = moved;
      }
    }
    return true;
  }

  // Every lane gets the sums over the four lanes of its rows.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int row = 0; row < 2 * m; row++) sum[row] = reduce_warp<4>(sum[row], Sum());
  }
};

// Keys from `keys` on, counted from the first of these fragments, are beyond the image.
template <int m, int fragments>
__device__ __forceinline__ void mask_keys(float (&s)[m][fragments][4], int keys, int lane) {
#pragma unroll
  for (int n = 0; n < fragments; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      if (column_of(n, e, lane) >= keys) {
#pragma unroll
        for (int i = 0; i < m; i++) s[i][n][e] = -INFINITY;
      }
    }
  }
}

}  // namespace desap::cuda
