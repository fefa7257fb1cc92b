// How a kernel is started. A Queue is a stream and the first error that it met: launches after an error do nothing, so a
// sequence of kernels is written without checks between them and asked once at its end.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace desap::cuda {

struct Queue {
  cudaStream_t stream = nullptr;
  // Kernels may start while their predecessor drains (programmatic dependent launch, sm_90 and later). Every kernel calls
  // ptx::wait_for_predecessor() before it touches global memory that a kernel wrote.
  bool overlap = false;
  bool follows_kernel = true;  // false: the next launch follows a copy or an event, and waits for it in full
  cudaError_t error = cudaSuccess;

  bool failed() const { return error != cudaSuccess; }
  void note(cudaError_t result) {
    if (error == cudaSuccess) error = result;
  }
};

// kernel<<<grid, block, shared_bytes, queue.stream>>>(arguments...).
template <class... Parameters, class... Arguments>
void launch(Queue& queue, void (*kernel)(Parameters...), dim3 grid, int block, size_t shared_bytes,
            const Arguments&... arguments) {
  if (queue.failed() || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr size_t without_asking = 48 * 1024;
  if (shared_bytes > without_asking) {
    queue.note(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)));
    if (queue.failed()) return;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream;
  config.attrs = &attribute;
  config.numAttrs = queue.overlap && queue.follows_kernel ? 1 : 0;
  queue.follows_kernel = true;
  queue.note(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

inline unsigned blocks_of(int64_t count, int64_t size) { return static_cast<unsigned>((count + size - 1) / size); }

}  // namespace desap::cuda
