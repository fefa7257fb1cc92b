// What this x86-64 processor has and its operating system saves, by CPUID and XCR0 themselves: the support library behind
// `__builtin_cpu_supports` is not the same in every toolchain, and one of them finds no features at all.
#pragma once

#include <cpuid.h>

namespace desap {

struct X86Features {
  bool avx2 = false;  // and FMA and F16C
  bool avx512 = false;  // F, BW, DQ and VL
  bool avx512bf16 = false;
};

inline X86Features x86_features() {
  const auto bit = [](unsigned word, int at) { return ((word >> at) & 1) != 0; };
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return {};
  const bool saves = bit(c, 27), fused = bit(c, 12) && bit(c, 29);  // OSXSAVE: XGETBV may be asked
  if (!saves || !fused) return {};
  unsigned saved = 0, high = 0;
  __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  const bool ymm = (saved & 0x06) == 0x06;
#if defined(__APPLE__)  // saves them from their first use on, and sets the bits then
  const bool zmm = ymm;
#else
  const bool zmm = (saved & 0xe6) == 0xe6;
#endif
  X86Features features;
  if (!ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  const unsigned subleaves = a;
  features.avx2 = bit(b, 5);
  features.avx512 = features.avx2 && zmm && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
  if (subleaves < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return features;
  features.avx512bf16 = features.avx512 && bit(a, 5);
  return features;
}

}  // namespace desap
