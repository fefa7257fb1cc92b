// The GPU as one context sees it: whether it still works, and its memory.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "../status.h"

namespace desap::cuda {

// Device memory comes from a pool: cudaMalloc and cudaFree wait for the whole GPU, and inference asks for the same few
// sizes again and again. Sizes are rounded up to eighths of a power of two; freed blocks are kept up to a limit and given
// back to the driver when it runs short.
//
// An error after which the driver refuses everything (a kernel that faulted, a GPU that fell off the bus) makes the GPU
// lost. From then on it is not called any more, not even to free its memory: the driver took that with the CUDA context.
class Gpu {
 public:
  explicit Gpu(int index) : index_(index) {}
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  // Before anything else on this thread. device_lost, or what the driver says.
  Status enter();
  // Enters to give something back, which says itself whose it is: a GPU that refuses to be entered takes it, one that is lost has lost it.
  bool enter_to_free() noexcept;
  bool lost() const { return lost_.load(std::memory_order_relaxed) != cudaSuccess; }
  // What a driver's answer means to the caller; `what` names the memory that was short.
  Status status(cudaError_t, const char* what);
  // From now on this GPU is lost.
  Status lose(cudaError_t);

  cudaError_t allocate(size_t bytes, void** block, size_t* capacity);
  void release(void* block, size_t capacity) noexcept;
  cudaError_t allocate_host(size_t bytes, void** block);
  void release_host(void* block) noexcept;

 private:
  struct Free {
    void* block;
    size_t capacity;
  };

  bool trim(size_t limit) noexcept;

  const int index_;
  std::atomic<cudaError_t> lost_{cudaSuccess};
  std::mutex mutex_;
  std::vector<Free> free_;  // oldest first
  size_t free_bytes_ = 0;
};

// A block of device memory. Holds its GPU.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceBuffer();

  // Replaces the block, the old one first. Empty after a failure.
  cudaError_t allocate(const std::shared_ptr<Gpu>&, int64_t bytes);
  char* data() const { return static_cast<char*>(block_); }
  int64_t capacity() const { return static_cast<int64_t>(capacity_); }

 private:
  void swap(DeviceBuffer& other) noexcept;

  std::shared_ptr<Gpu> gpu_;
  void* block_ = nullptr;
  size_t capacity_ = 0;
};

// Page-locked host memory that the GPU reaches, too.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer();

  cudaError_t allocate(const std::shared_ptr<Gpu>&, int64_t bytes);
  char* data() const { return static_cast<char*>(block_); }
  int64_t capacity() const { return capacity_; }

 private:
  std::shared_ptr<Gpu> gpu_;
  void* block_ = nullptr;
  int64_t capacity_ = 0;
};

// The address by which the GPU reads this host memory in place; null where it cannot.
const void* mapped_address(const void* data, int64_t bytes);

}  // namespace desap::cuda
