// ptx.cuh under DESAP_SIMT: the same functions, executed on the CPU. Their contracts stand there.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <cstdint>

#include "engine.h"

namespace desap::cuda::ptx {

template <class T>
T& shared() {
  return *static_cast<T*>(simt::shared_memory(sizeof(T)));
}
inline uint32_t shared_address(const void* pointer) { return simt::shared_offset(pointer); }

inline void copy_async(void* to, const void* from, bool valid, simt::Here here = simt::Here::here()) {
  simt::copy_async(to, from, valid, here);
}
inline void copy_commit() { simt::copy_commit(); }
template <int pending>
void copy_wait() {
  simt::copy_wait(pending);
}

inline void load_matrices(uint32_t (&r)[4], const void* row, simt::Here here = simt::Here::here()) {
  simt::load_matrices(r, row, false, here);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row, simt::Here here = simt::Here::here()) {
  simt::load_matrices(r, row, true, here);
}

inline void multiply_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         simt::Here here = simt::Here::here()) {
  simt::multiply_f16(d, a, b, here);
}
inline void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                          simt::Here here = simt::Here::here()) {
  simt::multiply_bf16(d, a, b, here);
}

inline float from_f16(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  // 2^112 moves the exponent's bias from 15 to 127, subnormals included.
  const uint32_t value = magnitude >= 0x7c00u ? 0x7f800000u | magnitude << 13
                                              : __float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f);
  return __uint_as_float(sign | value);
}
inline float from_bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

inline uint32_t to_f16(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // from half-way between 65504 and 65536
  if (magnitude < 0x38800000u) {                        // below 2^-14: the sum's last bit is worth 2^-24
    return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - __float_as_uint(0.5f));
  }
  return sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13);
}
inline uint32_t to_bf16(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack_f16(float low, float high) { return to_f16(low) | to_f16(high) << 16; }
inline uint32_t pack_bf16(float low, float high) { return to_bf16(low) | to_bf16(high) << 16; }

inline float exp2(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

inline void wait_for_predecessor() { simt::wait_for_predecessor(); }
inline void release_successor() {}

inline unsigned long long global_timer() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<unsigned long long>(std::chrono::nanoseconds(now).count());
}

}  // namespace desap::cuda::ptx
