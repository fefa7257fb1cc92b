// A row of a matrix in the registers of one block, float32: what the norms work on. Every element is read once, with
// all of the loads under way at the same time, since the row may lie in the host's memory.
//
// Element (k * blockDim.x + thread) * 4 + e is value[k][e]; elements beyond the row's width are 0. Which thread has
// which element, and so the order of each sum, depends on the width alone.
#pragma once

#include <cstdint>

#include "kernels.cuh"
#include "multiply.cuh"
#include "reduce.cuh"

namespace desap::cuda {

struct Row {
  static constexpr int vectors = 8;
  float value[vectors][4];
};

// Threads for rows of `width` elements, at most widest_row: a warp for each 1024.
constexpr int row_threads(int64_t width) { return static_cast<int>((width + 1023) / 1024) * 32; }
constexpr int max_row_threads = row_threads(widest_row);
struct RowScratch {
  float sum[max_row_threads / warp_size];
};

__device__ __forceinline__ int row_index(int k) {
  return (k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * 4;
}

// Whether a row can be read and written four elements at a time.
template <class T>
__device__ __forceinline__ bool in_fours(const T* row, int width) {
  return width % 4 == 0 && reinterpret_cast<uintptr_t>(row) % (4 * sizeof(T)) == 0;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(uint16_t half) { return ptx::from_f16(half); }
__device__ __forceinline__ void load_four(float (&value)[4], const float* x) {
  const float4 four = *reinterpret_cast<const float4*>(x);
  value[0] = four.x, value[1] = four.y, value[2] = four.z, value[3] = four.w;
}
__device__ __forceinline__ void load_four(float (&value)[4], const uint16_t* x) {
  const uint2 four = *reinterpret_cast<const uint2*>(x);
  value[0] = to_float(static_cast<uint16_t>(four.x & 0xffff)), value[1] = to_float(static_cast<uint16_t>(four.x >> 16));
  value[2] = to_float(static_cast<uint16_t>(four.y & 0xffff)), value[3] = to_float(static_cast<uint16_t>(four.y >> 16));
}

// Elements index .. index + 3 of the row x, at once where `fours` says that its elements lie in fours.
template <class T>
__device__ __forceinline__ void load_part(float (&value)[4], const T* x, int index, int width, bool fours) {
  if (fours && index < width) {
    load_four(value, x + index);
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++) value[e] = index + e < width ? to_float(x[index + e]) : 0;
  }
}

// x: float32 or binary16.
template <class T>
__device__ __forceinline__ void load_row(Row& row, const T* x, int width) {
  const bool fours = in_fours(x, width);
#pragma unroll
  for (int k = 0; k < Row::vectors; k++) load_part(row.value[k], x, row_index(k), width, fours);
}

// The sum of `rows` consecutive rows, in their order. Four columns of all rows, then the next four: whole rows under way beside
// the sum would not fit into the registers.
__device__ __forceinline__ void load_sum(Row& sum, const float* x, int rows, int width) {
  const bool fours = in_fours(x, width);
#pragma unroll
  for (int k = 0; k < Row::vectors; k++) {
    const int index = row_index(k);
    float(&value)[4] = sum.value[k];
    value[0] = value[1] = value[2] = value[3] = 0;
    if (index >= width) continue;
#pragma unroll 4
    for (int i = 0; i < rows; i++) {
      float part[4];
      load_part(part, x + static_cast<int64_t>(i) * width, index, width, fours);
#pragma unroll
      for (int e = 0; e < 4; e++) value[e] += part[e];
    }
  }
}

__device__ __forceinline__ void store_row(const Row& row, float* y, int width) {
  const bool fours = in_fours(y, width);
#pragma unroll
  for (int k = 0; k < Row::vectors; k++) {
    const int index = row_index(k);
    const float(&value)[4] = row.value[k];
    if (fours && index < width) {
      *reinterpret_cast<float4*>(y + index) = make_float4(value[0], value[1], value[2], value[3]);
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        if (index + e < width) y[index + e] = value[e];
      }
    }
  }
}

// The whole row of an operand, `y` pointing at its first element: up to y.ld, a multiple of 8.
template <Precision precision>
__device__ __forceinline__ void store_row(const Row& row, const Operand& y) {
#pragma unroll
  for (int k = 0; k < Row::vectors; k++) {
    const int index = row_index(k);
    if (index >= y.ld) continue;
    uint2 hi, lo;
    split<precision>(row.value[k][0], row.value[k][1], hi.x, lo.x);
    split<precision>(row.value[k][2], row.value[k][3], hi.y, lo.y);
    *reinterpret_cast<uint2*>(y.hi + index) = hi;
    if constexpr (precision == Precision::fp32) *reinterpret_cast<uint2*>(y.lo + index) = lo;
  }
}

// value = map(value, index) for the elements of the row.
template <class Map>
__device__ __forceinline__ void map_row(Row& row, int width, const Map& map) {
#pragma unroll
  for (int k = 0; k < Row::vectors; k++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int index = row_index(k) + e;
      if (index < width) row.value[k][e] = map(row.value[k][e], index);
    }
  }
}

// The sum of the elements, and of their squares.
__device__ __forceinline__ float sum_row(const Row& row, RowScratch& scratch) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < Row::vectors; k++) {
#pragma unroll
    for (int e = 0; e < 4; e++) sum += row.value[k][e];
  }
  return reduce_block(sum, scratch.sum, Sum());
}
__device__ __forceinline__ float sum_squares(const Row& row, RowScratch& scratch) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < Row::vectors; k++) {
#pragma unroll
    for (int e = 0; e < 4; e++) sum = fmaf(row.value[k][e], row.value[k][e], sum);
  }
  return reduce_block(sum, scratch.sum, Sum());
}

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

}  // namespace desap::cuda
