// What the tests of the CUDA kernels share: named cases, arrays in device memory that notice writes beyond their ends.
// The same files compile for a GPU and, under DESAP_SIMT, for the emulation on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <string>
#include <vector>

#include "../../cuda/kernels.cuh"
#include "machine_cuda.h"

namespace desap::test {

struct CudaCase {
  const char* name;
  void (*run)(cuda::Queue&);
};
inline std::vector<CudaCase>& cuda_cases() {
  static std::vector<CudaCase> list;
  return list;
}
struct RegisterCuda {
  RegisterCuda(const char* name, void (*run)(cuda::Queue&)) { cuda_cases().push_back({name, run}); }
};

#define DESAP_CUDA_CASE(name)                                              \
  static void name(::desap::cuda::Queue&);                                 \
  static const ::desap::test::RegisterCuda name##_registered(#name, name); \
  static void name([[maybe_unused]] ::desap::cuda::Queue& queue)

// Runs the cases whose name contains `wanted` (null: all) on `queue` ("attention [tag]").
inline void run_cuda_cases(cuda::Queue& queue, const std::string& tag, const char* wanted) {
  for (const CudaCase& one : cuda_cases()) {
    if (wanted && !std::strstr(one.name, wanted)) continue;
    place = std::string(one.name) + " [" + tag + "]";
    one.run(queue);
    queue.note(cudaDeviceSynchronize());
    if (!check(!queue.failed(), cudaGetErrorString(queue.error))) return;
  }
}

// Device memory between two guards, which are compared whenever it is read. Starts as all ones: NaN, or -1.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t size) : size_(static_cast<size_t>(size)) {
    check(cudaMalloc(&base_, bytes()) == cudaSuccess && cudaMemset(base_, 0xff, bytes()) == cudaSuccess, "cudaMalloc");
    wait();
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(static_cast<int64_t>(values.size())) {
    if (size_)
      check(cudaMemcpy(get(), values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess, "cudaMemcpy");
    wait();
  }
  ~DeviceArray() { cudaFree(base_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return reinterpret_cast<T*>(static_cast<char*>(base_) + guard); }
  std::vector<T> read() const {
    wait();
    std::vector<unsigned char> all(bytes());
    check(cudaMemcpy(all.data(), base_, bytes(), cudaMemcpyDeviceToHost) == cudaSuccess, "cudaMemcpy");
    bool intact = true;
    for (size_t i = 0; i < guard; i++) intact = intact && all[i] == 0xff && all[bytes() - 1 - i] == 0xff;
    check(intact, "written beyond an array");
    std::vector<T> values(size_);
    if (size_) std::memcpy(values.data(), all.data() + guard, size_ * sizeof(T));
    return values;
  }

 private:
  // Copies and the queue's kernels do not wait for each other by themselves.
  static void wait() { check(cudaDeviceSynchronize() == cudaSuccess, "cudaDeviceSynchronize"); }

  static constexpr size_t guard = 1024;
  size_t bytes() const { return guard + size_ * sizeof(T) + guard; }
  size_t size_;
  void* base_ = nullptr;
};

}  // namespace desap::test
