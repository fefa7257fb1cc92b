// Loops that show what the processor could do, two for each instruction set:
//
// - in_registers: multiply-adds and nothing else, the peak. That of bfloat16 pairs (VDPBF16PS, BFDOT) is of what has such operands.
// - loaded: for each two multiply-adds also an operand that is broadcast from the first-level cache, and an integer addition, much
//   as in a tile of a matrix product: twice the instructions. On a quiet core it comes close to the peak: 1.00 of it was measured
//   with AVX-512, 0.93 with AVX2, where Intel's additions take the multiply-adds' ports. Where another thread of the same core
//   takes its share of decoding and loading, matrix products slow down and so does this loop, but not the other.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

namespace desap::bench {

// The work of one loop, FLOP: about 12 ms at 110 GFLOP/s, long beside a timer tick, too short to heat anything.
constexpr double loop_work = 1.28e9;

inline double gflops_since(std::chrono::steady_clock::time_point start, double work) {
  return work / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 1e9;
}

// A loop of one thread, on all threads at once: cores may share a clock, a power budget, or their units. GFLOP/s of all together.
inline double on_threads(int threads, double (*loop)()) {
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

// GFLOP/s of one thread. `step` (a, x, y) is one instruction on vectors of `lanes` words, `flops` for each. There are `count`
// independent accumulators, more than latency (up to 6 cycles) times units (2). An empty asm keeps a value in its register, and
// from being known when this is compiled; the one on memory lets the operands change, so that every turn loads them again.
#define DESAP_LOOPS(isa, lanes, count, flops, step, attribute, constraint)                         \
  attribute inline double in_registers_##isa() {                                                   \
    typedef float V __attribute__((vector_size(4 * lanes)));                                       \
    V a[count] = {}, x = pair_of_quarters() - V{}, y = x;                                          \
    __asm__ volatile("" : "+" constraint(x), "+" constraint(y));                                   \
    const int64_t turns = static_cast<int64_t>(loop_work / (count * lanes * flops));               \
    const auto start = std::chrono::steady_clock::now();                                           \
    for (int64_t i = 0; i < turns; i++) {                                                          \
      _Pragma("GCC unroll 24") for (int j = 0; j < count; j++) {                                   \
        a[j] = step(a[j], x, y);                                                                   \
        __asm__ volatile("" : "+" constraint(a[j]));                                               \
      }                                                                                            \
    }                                                                                              \
    return gflops_since(start, static_cast<double>(turns) * count * lanes * flops);                \
  }                                                                                                \
                                                                                                   \
  attribute inline double loaded_##isa() {                                                         \
    typedef float V __attribute__((vector_size(4 * lanes)));                                       \
    V a[count] = {}, y = pair_of_quarters() - V{};                                                 \
    __asm__ volatile("" : "+" constraint(y));                                                      \
    float operands[count / 2];                                                                     \
    for (float& operand : operands) operand = pair_of_quarters();                                  \
    int64_t sums[4] = {};                                                                          \
    const int64_t turns = static_cast<int64_t>(loop_work / (count * lanes * flops));               \
    const auto start = std::chrono::steady_clock::now();                                           \
    for (int64_t i = 0; i < turns; i++) {                                                          \
      __asm__ volatile("" : : "r"(operands) : "memory");                                           \
      _Pragma("GCC unroll 12") for (int j = 0; j < count / 2; j++) {                               \
        V x = DESAP_BROADCAST(operands + j);                                                       \
        __asm__ volatile("" : "+" constraint(x));                                                  \
        a[2 * j] = step(a[2 * j], x, y);                                                           \
        a[2 * j + 1] = step(a[2 * j + 1], x, y);                                                   \
        __asm__ volatile("" : "+" constraint(a[2 * j]), "+" constraint(a[2 * j + 1]));             \
        sums[j % 4] += 1;                                                                          \
        __asm__ volatile("" : "+r"(sums[j % 4]));                                                  \
      }                                                                                            \
    }                                                                                              \
    return gflops_since(start, static_cast<double>(turns) * count * lanes * flops);                \
  }

#if defined(__x86_64__)
#define DESAP_BROADCAST(word) (*(word) - V{})
#define DESAP_MULTIPLY_ADD(a, x, y) (a * x + y)
#define DESAP_DOT(a, x, y) ((V)_mm512_dpbf16_ps((__m512)a, (__m512bh)x, (__m512bh)y))
DESAP_LOOPS(baseline, 4, 12, 2, DESAP_MULTIPLY_ADD, , "x")
DESAP_LOOPS(avx2, 8, 12, 2, DESAP_MULTIPLY_ADD, __attribute__((target("avx2,fma"))), "x")
DESAP_LOOPS(avx512, 16, 24, 2, DESAP_MULTIPLY_ADD, __attribute__((target("avx512f"))), "v")
DESAP_LOOPS(bfloat16, 16, 24, 4, DESAP_DOT, __attribute__((target("avx512f,avx512bf16"))), "v")
#else
#if defined(__clang__)
#define DESAP_BF16 __attribute__((target("bf16")))
#else
#define DESAP_BF16 __attribute__((target("arch=armv8.2-a+bf16")))
#endif
// vld1q_dup_f32 becomes a load and a DUP, which takes a unit from the multiply-adds.
inline float32x4_t load_replicated(const float* word) {
  float32x4_t x;
  __asm__ volatile("ld1r {%0.4s}, %1" : "=w"(x) : "Q"(*word));
  return x;
}
#define DESAP_BROADCAST(word) ((V)load_replicated(word))
#define DESAP_MULTIPLY_ADD(a, x, y) ((V)vfmaq_f32((float32x4_t)a, (float32x4_t)x, (float32x4_t)y))
#define DESAP_DOT(a, x, y) ((V)vbfdotq_f32((float32x4_t)a, (bfloat16x8_t)x, (bfloat16x8_t)y))
DESAP_LOOPS(baseline, 4, 24, 2, DESAP_MULTIPLY_ADD, , "w")
DESAP_LOOPS(bfloat16, 4, 24, 4, DESAP_DOT, DESAP_BF16, "w")
#endif
#undef DESAP_LOOPS

}  // namespace desap::bench
