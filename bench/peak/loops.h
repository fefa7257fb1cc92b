// Loops that show what the processor could do, beside the one of native/test/peak.h: float32 multiply-adds in registers.
//
// - in_registers: products of bfloat16 pairs and nothing else (VDPBF16PS, BFDOT), the peak of what has bfloat16 operands.
// - loaded: two multiply-adds per operand that is broadcast from the first-level cache, and an integer addition, much as in a
//   tile of a matrix product. That is twice the instructions per multiply-add. On a quiet core it reaches the peak in registers.
//   Where another thread of the same core takes its share of decoding and loading, a matrix product slows down and so does this
//   loop, but the loop in registers does not.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace desap::bench {

using Loop = double (*)();

// As much work as the loop of native/test/peak.h does, FLOP.
constexpr double loop_work = 1.28e9;

inline double gflops_since(std::chrono::steady_clock::time_point start, double work) {
  return work / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 1e9;
}

// All threads at once: cores may share a clock, a power budget, or their units. GFLOP/s of all together.
inline double on_threads(int threads, Loop loop) {
  std::vector<double> each(static_cast<size_t>(threads));
  std::vector<std::thread> others;
  for (size_t i = 1; i < each.size(); i++) others.emplace_back([&each, i, loop] { each[i] = loop(); });
  each[0] = loop();
  for (std::thread& other : others) other.join();
  double sum = 0;
  for (double x : each) sum += x;
  return sum;
}

// Two bfloat16 numbers, 0.25 each, as one float32 word; as a float32 number it is 0.25 and a little.
inline float pair_of_quarters() {
  const uint32_t bits = 0x3e803e80;
  float word;
  std::memcpy(&word, &bits, sizeof word);
  return word;
}

// `count` independent accumulators, more than latency (up to 6) times units (2). An empty asm keeps a value in its register.
// `step` (a, x, y) is one instruction on vectors of `lanes` words, `flops` per lane.
#define DESAP_IN_REGISTERS(isa, lanes, count, flops, step, attribute, constraint)                          \
  attribute inline double in_registers_##isa() {                                                           \
    typedef float V __attribute__((vector_size(4 * lanes)));                                               \
    V a[count] = {}, x = pair_of_quarters() - V{}, y = x;                                                  \
    const int64_t turns = static_cast<int64_t>(loop_work / (count * lanes * flops));                       \
    const auto start = std::chrono::steady_clock::now();                                                   \
    for (int64_t i = 0; i < turns; i++) {                                                                  \
      _Pragma("GCC unroll 24") for (int j = 0; j < count; j++) {                                           \
        a[j] = step(a[j], x, y);                                                                           \
        __asm__ volatile("" : "+" constraint(a[j]));                                                       \
      }                                                                                                    \
    }                                                                                                      \
    return gflops_since(start, static_cast<double>(turns) * count * lanes * flops);                        \
  }

// The operands lie in memory that another thread might write to: every turn loads all of them again.
#define DESAP_LOADED(isa, lanes, count, flops, step, attribute, constraint)                                \
  attribute inline double loaded_##isa() {                                                                 \
    typedef float V __attribute__((vector_size(4 * lanes)));                                               \
    V a[count] = {}, y = pair_of_quarters() - V{};                                                         \
    float operands[count / 2];                                                                             \
    for (float& operand : operands) operand = pair_of_quarters();                                          \
    int64_t sums[4] = {};                                                                                  \
    const int64_t turns = static_cast<int64_t>(loop_work / (count * lanes * flops));                       \
    const auto start = std::chrono::steady_clock::now();                                                   \
    for (int64_t i = 0; i < turns; i++) {                                                                  \
      __asm__ volatile("" : : "r"(operands) : "memory");                                                   \
      _Pragma("GCC unroll 12") for (int j = 0; j < count / 2; j++) {                                       \
        V x = operands[j] - V{};                                                                           \
        __asm__ volatile("" : "+" constraint(x));                                                          \
        a[2 * j] = step(a[2 * j], x, y);                                                                   \
        a[2 * j + 1] = step(a[2 * j + 1], x, y);                                                           \
        __asm__ volatile("" : "+" constraint(a[2 * j]), "+" constraint(a[2 * j + 1]));                     \
        sums[j % 4] += 1;                                                                                  \
        __asm__ volatile("" : "+r"(sums[j % 4]));                                                          \
      }                                                                                                    \
    }                                                                                                      \
    return gflops_since(start, static_cast<double>(turns) * count * lanes * flops);                        \
  }

#define DESAP_MULTIPLY_ADD(a, x, y) (a * x + y)

#if defined(__x86_64__)
#define DESAP_AVX512BF16 __attribute__((target("avx512f,avx512bf16")))
#define DESAP_DOT(a, x, y) ((V)_mm512_dpbf16_ps((__m512)a, (__m512bh)x, (__m512bh)y))
DESAP_LOADED(scalar, 4, 12, 2, DESAP_MULTIPLY_ADD, , "x")
DESAP_LOADED(avx2, 8, 12, 2, DESAP_MULTIPLY_ADD, __attribute__((target("avx2,fma"))), "x")
DESAP_LOADED(avx512, 16, 24, 2, DESAP_MULTIPLY_ADD, __attribute__((target("avx512f"))), "v")
DESAP_LOADED(bfloat16, 16, 24, 4, DESAP_DOT, DESAP_AVX512BF16, "v")
DESAP_IN_REGISTERS(bfloat16, 16, 24, 4, DESAP_DOT, DESAP_AVX512BF16, "v")
#else
#if defined(__clang__)
#define DESAP_NEONBF16 __attribute__((target("bf16")))
#else
#define DESAP_NEONBF16 __attribute__((target("arch=armv8.2-a+bf16")))
#endif
#define DESAP_DOT(a, x, y) ((V)vbfdotq_f32((float32x4_t)a, (bfloat16x8_t)x, (bfloat16x8_t)y))
DESAP_LOADED(scalar, 4, 24, 2, DESAP_MULTIPLY_ADD, , "w")
DESAP_LOADED(bfloat16, 4, 24, 4, DESAP_DOT, DESAP_NEONBF16, "w")
DESAP_IN_REGISTERS(bfloat16, 4, 24, 4, DESAP_DOT, DESAP_NEONBF16, "w")
#endif

}  // namespace desap::bench
