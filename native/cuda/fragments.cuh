// Which rows of shared memory the lanes of a warp pass to ptx::load_matrices to fill the fragments of
// ptx::multiply_f16: A 16 x 16, B 16 x 8, D 16 x 8. The rows' 16-byte chunks (8 elements) hold consecutive k:
//   A [m, k]     row a_row(lane), chunk a_chunk(lane) of 16 x 16: r is a[0..3]
//   B^T [n, k]   row b_row(lane), chunk b_chunk(lane) of 16 x 16: r[0..1] is b of n = 0..7, r[2..3] of n = 8..15
// or, with ptx::load_matrices_transposed, consecutive n:
//   B [k, n]     row a_row(lane), chunk a_chunk(lane) of 16 x 16: r[0..1] is b of n = 0..7, r[2..3] of n = 8..15
#pragma once

#include <cuda_runtime.h>

#include "operand.h"

namespace desap::cuda {

constexpr int planes_of(Precision precision) { return precision == Precision::fp32 ? 2 : 1; }

constexpr __host__ __device__ int a_row(int lane) { return lane % 16; }
constexpr __host__ __device__ int a_chunk(int lane) { return lane / 16; }
constexpr __host__ __device__ int b_row(int lane) { return lane / 16 * 8 + lane % 8; }
constexpr __host__ __device__ int b_chunk(int lane) { return lane / 8 % 2; }

}  // namespace desap::cuda
