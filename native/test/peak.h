// The processor's own float32 multiply-add peak, which kernels are measured against.
//
// The loop runs at 2 multiply-adds per vector register and clock cycle whether it has 8 or 14 accumulators; what moves between calls is
// the clock itself. A share of the peak is therefore taken from a peak that was measured next to the kernel.
#pragma once

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "../cpu/context.h"

namespace desap::test {

// 10 independent accumulators (latency 4 times 2 units, and spare), kept in registers by an empty asm; returns GFLOP/s of one thread.
// About 12 ms at 110 GFLOP/s: long beside a timer tick, too short to heat anything.
#define DESAP_PEAK(isa, lanes, attribute, constraint)                                                      \
  attribute inline double peak_##isa() {                                                                   \
    typedef float V __attribute__((vector_size(4 * lanes)));                                               \
    V a[10] = {}, x = V{} + 0.5f, y = V{} + 0.25f;                                                         \
    const int64_t steps = 64000000 / lanes;                                                                \
    const auto start = std::chrono::steady_clock::now();                                                   \
    for (int64_t i = 0; i < steps; i++) {                                                                  \
      _Pragma("GCC unroll 10") for (int j = 0; j < 10; j++) a[j] = a[j] * x + y;                           \
      _Pragma("GCC unroll 10") for (int j = 0; j < 10; j++) __asm__ volatile("" : "+" constraint(a[j]));   \
    }                                                                                                      \
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;                \
    return static_cast<double>(steps) * 10 * 2 * lanes / seconds.count() / 1e9;                            \
  }

#if defined(__x86_64__)
DESAP_PEAK(scalar, 4, , "x")
DESAP_PEAK(avx2, 8, __attribute__((target("avx2,fma"))), "x")
DESAP_PEAK(avx512, 16, __attribute__((target("avx512f"))), "v")
#else
DESAP_PEAK(scalar, 4, , "w")
#endif
#undef DESAP_PEAK

inline double peak_of_one(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512 || isa == Isa::avx512bf16) return peak_avx512();
  if (isa == Isa::avx2) return peak_avx2();
#endif
  (void)isa;
  return peak_scalar();
}

// All threads at once: cores may share a clock, a power budget, or their units.
inline double multiply_add_peak(Isa isa, int threads) {
  std::vector<double> each(static_cast<size_t>(threads));
  std::vector<std::thread> others;
  for (int i = 1; i < threads; i++) others.emplace_back([&, i] { each[static_cast<size_t>(i)] = peak_of_one(isa); });
  each[0] = peak_of_one(isa);
  for (std::thread& other : others) other.join();
  double sum = 0;
  for (double x : each) sum += x;
  return sum;
}

}  // namespace desap::test
