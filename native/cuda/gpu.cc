#include "gpu.h"

#include <new>
#include <utility>

#include "context.h"

namespace desap::cuda {
namespace {

constexpr size_t smallest_block = 512;
constexpr size_t kept_bytes = size_t{512} << 20;

// Rounded up to an eighth of the power of two below: at most 12.5 % is wasted, and sizes that are nearly equal share blocks.
size_t capacity_of(size_t bytes) {
  if (bytes <= smallest_block) return smallest_block;
  size_t power = smallest_block;
  while (power <= bytes / 2) power *= 2;
  const size_t step = power / 8;
  return (bytes + step - 1) / step * step;
}

// Errors that leave the CUDA context unusable, by the driver's documentation.
bool fatal(cudaError_t error) {
  switch (error) {
    case cudaErrorCudartUnloading:
    case cudaErrorDevicesUnavailable:
    case cudaErrorDeviceUninitialized:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorContained:
      return true;
    default:
      return false;
  }
}

constexpr unsigned host_flags = cudaHostAllocPortable | cudaHostAllocMapped;

// The GPU that page-locked memory belongs to when no context says which: the one last used.
std::atomic<int> last_gpu{0};

}  // namespace

// ----------------------------------------------------------------------------------------------------------- GPU

Gpu::~Gpu() { trim(0); }

Status Gpu::enter() {
  if (lost()) return {Code::device_lost, cudaGetErrorName(lost_)};
  DESAP_TRY(status(cudaSetDevice(index_), "device"));
  last_gpu = index_;
  return {};
}

bool Gpu::enter_to_free() noexcept {
  enter();
  return !lost();
}

Status Gpu::status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  if (fatal(error)) return lose(error);
  if (lost()) return {Code::device_lost, cudaGetErrorName(lost_)};
  cudaGetLastError();  // the runtime would say it again to the next who asks
  if (error == cudaErrorMemoryAllocation) return {Code::out_of_memory, what};
  return {Code::device_failed, cudaGetErrorName(error)};
}

Status Gpu::lose(cudaError_t error) {
  cudaError_t working = cudaSuccess;
  lost_.compare_exchange_strong(working, error);  // the first one stays
  return {Code::device_lost, cudaGetErrorName(lost_)};
}

cudaError_t Gpu::allocate(size_t bytes, void** block, size_t* capacity) {
  *capacity = capacity_of(bytes);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = free_.size(); i-- > 0;) {
      if (free_[i].capacity != *capacity) continue;
      *block = free_[i].block;
      free_bytes_ -= *capacity;
      free_.erase(free_.begin() + static_cast<ptrdiff_t>(i));
      return cudaSuccess;
    }
  }
  cudaError_t error = cudaMalloc(block, *capacity);
  if (error == cudaErrorMemoryAllocation && trim(0)) {
    cudaGetLastError();
    error = cudaMalloc(block, *capacity);
  }
  return error;
}

// The block is kept even where the driver refuses at the moment: only what goes back to it needs the driver.
void Gpu::release(void* block, size_t capacity) noexcept {
  if (lost()) return;
  try {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back({block, capacity});
    free_bytes_ += capacity;
  } catch (const std::bad_alloc&) {
    if (enter_to_free()) status(cudaFree(block), "device memory");
    return;
  }
  trim(kept_bytes);
}

// Whether anything went back to the driver.
bool Gpu::trim(size_t limit) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_bytes_ <= limit || !enter_to_free()) return false;
  size_t dropped = 0;
  for (; free_bytes_ > limit && !lost(); dropped++) {
    status(cudaFree(free_[dropped].block), "device memory");
    free_bytes_ -= free_[dropped].capacity;
  }
  free_.erase(free_.begin(), free_.begin() + static_cast<ptrdiff_t>(dropped));
  return dropped > 0;
}

cudaError_t Gpu::allocate_host(size_t bytes, void** block) { return cudaHostAlloc(block, bytes, host_flags); }

void Gpu::release_host(void* block) noexcept {
  if (enter_to_free()) status(cudaFreeHost(block), "page-locked memory");
}

// ---------------------------------------------------------------------------------------------------------- buffers

DeviceBuffer::~DeviceBuffer() {
  if (block_) gpu_->release(block_, capacity_);
}

void DeviceBuffer::swap(DeviceBuffer& other) noexcept {
  std::swap(gpu_, other.gpu_);
  std::swap(block_, other.block_);
  std::swap(capacity_, other.capacity_);
}

cudaError_t DeviceBuffer::allocate(const std::shared_ptr<Gpu>& gpu, int64_t bytes) {
  DeviceBuffer().swap(*this);
  const cudaError_t error = gpu->allocate(static_cast<size_t>(bytes), &block_, &capacity_);
  if (error == cudaSuccess) {
    gpu_ = gpu;
  } else {
    block_ = nullptr;
    capacity_ = 0;
  }
  return error;
}

PinnedBuffer::~PinnedBuffer() {
  if (block_) gpu_->release_host(block_);
}

cudaError_t PinnedBuffer::allocate(const std::shared_ptr<Gpu>& gpu, int64_t bytes) {
  if (block_) gpu_->release_host(block_);
  block_ = nullptr;
  capacity_ = 0;
  const cudaError_t error = gpu->allocate_host(static_cast<size_t>(bytes), &block_);
  if (error == cudaSuccess) {
    gpu_ = gpu;
    capacity_ = bytes;
  } else {
    block_ = nullptr;
  }
  return error;
}

// ------------------------------------------------------------------------------------------------ page-locked memory

const void* mapped_address(const void* data, int64_t bytes) {
  const auto address = [](const char* byte) -> const char* {
    cudaPointerAttributes attributes{};
    if (cudaPointerGetAttributes(&attributes, byte) != cudaSuccess) {
      cudaGetLastError();
      return nullptr;
    }
    return attributes.type == cudaMemoryTypeHost ? static_cast<const char*>(attributes.devicePointer) : nullptr;
  };
  const char* begin = static_cast<const char*>(data);
  const char* first = address(begin);
  return first && address(begin + bytes - 1) == first + (bytes - 1) ? first : nullptr;
}

void* host_allocate(size_t bytes) {
  void* block = nullptr;
  if (cudaSetDevice(last_gpu) == cudaSuccess && cudaHostAlloc(&block, bytes, host_flags) == cudaSuccess) return block;
  cudaGetLastError();
  return nullptr;
}

void host_free(void* block) {
  const cudaError_t entered = cudaSetDevice(last_gpu), freed = cudaFreeHost(block);
  if (entered != cudaSuccess || freed != cudaSuccess) cudaGetLastError();
}

}  // namespace desap::cuda
