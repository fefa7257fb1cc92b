// What the greedy selections share: the next row, found by all blocks at once, and cosines by a warp a row.
#pragma once

#include "kernels.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

namespace desap::cuda {

constexpr int greedy_warps = 8, greedy_threads = greedy_warps * warp_size;

// Ascending as the scores are; -0 counts as +0. Never 0.
__device__ __forceinline__ unsigned in_order(float score) {
  const unsigned word = __float_as_uint(score == 0 ? 0.0f : score);
  return word & 0x80000000u ? ~word : word | 0x80000000u;
}
__host__ __device__ __forceinline__ unsigned from_order(unsigned order) { return order & 0x80000000u ? order & 0x7fffffffu : ~order; }

// A row with its score: the larger the score the larger the pick, and of equal scores the lower row's. 0: none.
__device__ __forceinline__ Pick pick_of(float score, int row) {
  return static_cast<Pick>(in_order(score)) << 32 | (0xffffffffu - static_cast<unsigned>(row));
}
__host__ __device__ __forceinline__ int row_of(Pick pick) { return static_cast<int>(0xffffffffu - static_cast<unsigned>(pick)); }
__device__ __forceinline__ float score_of(Pick pick) { return __uint_as_float(from_order(static_cast<unsigned>(pick >> 32))); }

// The largest pick of the block's warps, each of which has one in all of its lanes.
__device__ __forceinline__ void offer(Pick pick, Pick* best, Pick* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  if (threadIdx.x % warp_size == 0) scratch[warp] = pick;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < greedy_warps; w++) pick = pick < scratch[w] ? scratch[w] : pick;
  if (pick != 0) atomicMax(best, pick);
}

// a . b by a warp; every lane gets it. Which of the two comes first makes no difference, bit for bit.
__device__ __forceinline__ float warp_dot(const float* a, const float* b, int64_t size) {
  float sum = 0;
#pragma unroll 4
  for (int64_t c = threadIdx.x % warp_size; c < size; c += warp_size) sum = fmaf(a[c], b[c], sum);
  return reduce_warp(sum, Sum());
}

}  // namespace desap::cuda
