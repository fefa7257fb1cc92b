// Reductions over a warp and over a block, each in one fixed order: the result has the same bits every time and for
// every thread. `combine` must be commutative, so that a butterfly gives all lanes the same bits: Sum, and of numbers
// without NaN Largest and Smallest.
#pragma once

#include "ptx.cuh"

namespace desap::cuda {

constexpr int warp_size = 32;

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
struct Largest {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return a < b ? b : a; }
};
struct Smallest {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return b < a ? b : a; }
};

// Over groups of `width` lanes that start at multiples of it (a power of two); every lane of the group gets the result.
template <int width = warp_size, class T, class Combine>
__device__ __forceinline__ T reduce_warp(T value, const Combine& combine) {
#pragma unroll
  for (int distance = width / 2; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// Over all threads of a block of blockDim.x (a multiple of 32); every thread gets the result. `scratch`: an element of
// shared memory for each warp, which may be used again after the next barrier.
template <class T, class Combine>
__device__ __forceinline__ T reduce_block(T value, T* scratch, const Combine& combine) {
  const int warps = static_cast<int>(blockDim.x) / warp_size, thread = static_cast<int>(threadIdx.x);
  value = reduce_warp(value, combine);
  if (warps > 1) {
    if (thread % warp_size == 0) scratch[thread / warp_size] = value;
    __syncthreads();
    value = scratch[0];
    for (int w = 1; w < warps; w++) value = combine(value, scratch[w]);
  }
  return value;
}

}  // namespace desap::cuda
