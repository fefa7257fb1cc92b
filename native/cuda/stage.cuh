// Float32 rows on their way into shared memory, four elements a thread at a time.
#pragma once

#include "ptx.cuh"

namespace desap::cuda {

// Whether rows of `width` contiguous elements from here on can be copied by 16 bytes.
__device__ __forceinline__ bool in_sixteen_bytes(const float* rows, int width) {
  return width % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % 16 == 0;
}

// to[0..3] = row[column .. column + 3], zeros from `width` on (0: nothing is read). Complete for this thread after
// copy_commit and copy_wait, for others after a barrier as well.
__device__ __forceinline__ void fetch_four(float* to, const float* row, int column, int width, bool sixteen_bytes) {
  if (sixteen_bytes) {
    const bool valid = column < width;
    ptx::copy_async(to, valid ? row + column : row, valid);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < 4; i++) to[i] = column + i < width ? row[column + i] : 0.0f;
}

}  // namespace desap::cuda
