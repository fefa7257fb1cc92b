// Stands in for the toolkit's cuda_runtime.h: what kernels use beside C++ and ptx.cuh, and the part of the runtime API
// that the host code calls, with the toolkit's names, types and values (CUDA 13). runtime.cc implements it;
// simt_control.h sets what device it pretends to have, and its faults.
#pragma once

#include <limits.h>
#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "engine.h"

// ---- Qualifiers -----------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// ---- Vectors --------------------------------------------------------------------------------------------------------

#define DESAP_SIMT_VECTORS(name, type, align2, align4)                                    \
  struct __align__(align2) name##2 { type x, y; };                                        \
  struct __align__(align4) name##4 { type x, y, z, w; };                                  \
  constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }                     \
  constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

DESAP_SIMT_VECTORS(float, float, 8, 16)
DESAP_SIMT_VECTORS(int, int, 8, 16)
DESAP_SIMT_VECTORS(uint, unsigned, 8, 16)
DESAP_SIMT_VECTORS(ushort, unsigned short, 4, 8)
DESAP_SIMT_VECTORS(uchar, unsigned char, 2, 4)
#undef DESAP_SIMT_VECTORS

// ---- Arithmetic -----------------------------------------------------------------------------------------------------

namespace desap::simt {
template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace desap::simt

inline unsigned __float_as_uint(float x) { return desap::simt::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return desap::simt::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return desap::simt::bits_as<float>(x); }
inline float __int_as_float(int x) { return desap::simt::bits_as<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }

#define DESAP_SIMT_MIN_MAX(type)                              \
  constexpr type min(type a, type b) { return b < a ? b : a; } \
  constexpr type max(type a, type b) { return a < b ? b : a; }
DESAP_SIMT_MIN_MAX(int)
DESAP_SIMT_MIN_MAX(unsigned)
DESAP_SIMT_MIN_MAX(long)
DESAP_SIMT_MIN_MAX(unsigned long)
DESAP_SIMT_MIN_MAX(long long)
DESAP_SIMT_MIN_MAX(unsigned long long)
#undef DESAP_SIMT_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

template <class T>
T __ldg(const T* pointer) { return *pointer; }

// ---- Atomics: fibers only change in collectives and barriers --------------------------------------------------------

template <class T>
T atomicAdd(T* at, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>, "sums of floats would depend on the order");
  const T old = *at;
  *at = old + value;
  return old;
}
template <class T>
T atomicMin(T* at, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>);
  const T old = *at;
  if (value < old) *at = value;
  return old;
}
template <class T>
T atomicMax(T* at, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>);
  const T old = *at;
  if (old < value) *at = value;
  return old;
}
template <class T>
T atomicOr(T* at, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>);
  const T old = *at;
  *at = old | value;
  return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Barriers and warp-wide operations ------------------------------------------------------------------------------

namespace desap::simt {

enum class Shuffle { from, exclusive_or, up, down };

template <class T>
struct ShuffleArgument {
  T value;
  unsigned operand, width;
  T result;
};

template <class T, Shuffle mode>
void shuffle_execute(void* const* arguments, unsigned mask) {
  for (unsigned lane = 0; lane < warp_size; lane++) {
    if (!(mask >> lane & 1)) continue;
    auto& mine = *static_cast<ShuffleArgument<T>*>(arguments[lane]);
    const unsigned first = lane / mine.width * mine.width, last = first + mine.width - 1, by = mine.operand;
    unsigned source = mode == Shuffle::from           ? first + by % mine.width
                      : mode == Shuffle::exclusive_or ? lane ^ by
                      : mode == Shuffle::up           ? lane - by
                                                      : lane + by;
    // Outside the segment a lane keeps its own value; lane - by wraps to a large number below zero. An exclusive or may
    // reach earlier segments.
    if (mode == Shuffle::up ? source < first || source > lane : source > last) source = lane;
    if (!(mask >> source & 1)) fail("a shuffle reads lane " + std::to_string(source) + ", which takes no part in it");
    mine.result = static_cast<ShuffleArgument<T>*>(arguments[source])->value;
  }
}

template <Shuffle mode, class T>
T shuffle(const char* name, unsigned mask, T value, unsigned operand, int width, Here here) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  ShuffleArgument<T> argument{value, operand, static_cast<unsigned>(width), value};
  collective(name, mask, shuffle_execute<T, mode>, &argument, here);
  return argument.result;
}

struct BallotArgument {
  bool predicate;
  unsigned result;
};
inline void ballot_execute(void* const* arguments, unsigned mask) {
  unsigned result = 0;
  for (unsigned lane = 0; lane < warp_size; lane++) {
    if (mask >> lane & 1 && static_cast<BallotArgument*>(arguments[lane])->predicate) result |= 1u << lane;
  }
  for (unsigned lane = 0; lane < warp_size; lane++) {
    if (mask >> lane & 1) static_cast<BallotArgument*>(arguments[lane])->result = result;
  }
}
inline unsigned ballot(const char* name, unsigned mask, bool predicate, Here here) {
  BallotArgument argument{predicate, 0};
  collective(name, mask, ballot_execute, &argument, here);
  return argument.result;
}

inline void nothing(void* const*, unsigned) {}

}  // namespace desap::simt

#define DESAP_HERE desap::simt::Here here = desap::simt::Here::here()

inline void __syncthreads(DESAP_HERE) { desap::simt::barrier(here); }
inline void __syncwarp(unsigned mask = desap::simt::full_mask, DESAP_HERE) {
  desap::simt::collective("__syncwarp", mask, desap::simt::nothing, nullptr, here);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, DESAP_HERE) {
  return desap::simt::shuffle<desap::simt::Shuffle::from>("__shfl_sync", mask, value, static_cast<unsigned>(source),
                                                          width, here);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32, DESAP_HERE) {
  return desap::simt::shuffle<desap::simt::Shuffle::exclusive_or>("__shfl_xor_sync", mask, value,
                                                                  static_cast<unsigned>(by), width, here);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, DESAP_HERE) {
  return desap::simt::shuffle<desap::simt::Shuffle::up>("__shfl_up_sync", mask, value, by, width, here);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, DESAP_HERE) {
  return desap::simt::shuffle<desap::simt::Shuffle::down>("__shfl_down_sync", mask, value, by, width, here);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, DESAP_HERE) {
  return desap::simt::ballot("__ballot_sync", mask, predicate != 0, here);
}
inline int __any_sync(unsigned mask, int predicate, DESAP_HERE) {
  return desap::simt::ballot("__any_sync", mask, predicate != 0, here) != 0;
}
inline int __all_sync(unsigned mask, int predicate, DESAP_HERE) {
  return desap::simt::ballot("__all_sync", mask, predicate != 0, here) == mask;
}

#undef DESAP_HERE

// ---- Runtime API ----------------------------------------------------------------------------------------------------

enum cudaError {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorCudartUnloading = 4,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidMemcpyDirection = 21,
  cudaErrorInsufficientDriver = 35,
  cudaErrorDevicesUnavailable = 46,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorDeviceUninitialized = 201,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorECCUncorrectable = 214,
  cudaErrorNvlinkUncorrectable = 220,
  cudaErrorContained = 226,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorIllegalState = 401,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorLaunchTimeout = 702,
  cudaErrorContextIsDestroyed = 709,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
  cudaErrorTensorMemoryLeak = 721,
  cudaErrorNotPermitted = 800,
  cudaErrorNotSupported = 801,
  cudaErrorSystemNotReady = 802,
  cudaErrorMpsClientTerminated = 810,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorStreamCaptureMerge = 902,
  cudaErrorStreamCaptureUnmatched = 903,
  cudaErrorStreamCaptureUnjoined = 904,
  cudaErrorStreamCaptureIsolation = 905,
  cudaErrorStreamCaptureImplicit = 906,
  cudaErrorStreamCaptureWrongThread = 908,
  cudaErrorExternalDevice = 911,
  cudaErrorUnknown = 999,
};
using cudaError_t = cudaError;

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4,
};
enum cudaMemoryType {
  cudaMemoryTypeUnregistered = 0,
  cudaMemoryTypeHost = 1,
  cudaMemoryTypeDevice = 2,
  cudaMemoryTypeManaged = 3,
};
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
  void *devicePointer, *hostPointer;
};
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  size_t sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
  int major, minor, multiProcessorCount, maxThreadsPerBlock, warpSize, l2CacheSize;
  int canMapHostMemory, unifiedAddressing, integrated;
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrIntegrated = 18,
  cudaDevAttrCanMapHostMemory = 19,
  cudaDevAttrUnifiedAddressing = 41,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2,
};
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2,
};

constexpr unsigned cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;
constexpr unsigned cudaHostAllocWriteCombined = 4;
constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2;

enum cudaLaunchAttributeID { cudaLaunchAttributeIgnore = 0, cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
union cudaLaunchAttributeValue {
  char pad[64];
  int programmaticStreamSerializationAllowed;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  char pad[8 - sizeof(cudaLaunchAttributeID)];
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);

cudaError_t cudaMalloc(void** pointer, size_t bytes);
template <class T>
cudaError_t cudaMalloc(T** pointer, size_t bytes) { return cudaMalloc(reinterpret_cast<void**>(pointer), bytes); }
cudaError_t cudaFree(void* pointer);
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned flags);
template <class T>
cudaError_t cudaHostAlloc(T** pointer, size_t bytes, unsigned flags) {
  return cudaHostAlloc(reinterpret_cast<void**>(pointer), bytes, flags);
}
cudaError_t cudaFreeHost(void* pointer);
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags);
template <class T>
cudaError_t cudaHostGetDevicePointer(T** device, void* host, unsigned flags) {
  return cudaHostGetDevicePointer(reinterpret_cast<void**>(device), host, flags);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void* at, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaMemset2DAsync(void* at, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream = nullptr);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value);

namespace desap::simt {
cudaError_t launch(const cudaLaunchConfig_t& config, const void* function, const char* what,
                   std::function<void()> thread);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernel parameters are copied as bytes");
  return desap::simt::launch(*config, reinterpret_cast<const void*>(kernel), __PRETTY_FUNCTION__,
                             [kernel, values = std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)] {
                               std::apply(kernel, values);
                             });
}
