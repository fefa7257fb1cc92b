// Runs every case on every instruction set that this machine supports; an argument selects cases by part of their name.
#include "machine_cpu.h"

#if defined(__x86_64__)
namespace desap {
extern const Kernels lanes16_kernels;  // lanes16.cc
}
#endif

int main(int argc, char** argv) {
  using namespace desap;
  using namespace desap::test;
  const char* wanted = argc > 1 ? argv[1] : nullptr;
  Isa isas[isa_count];
  const int count = supported_isas(isas);
  for (int i = 0; i < count; i++) {
    run_cases(machine_of(isas[i], false), wanted);
    if (has_bfloat16(isas[i])) run_cases(machine_of(isas[i], true), wanted);
#if defined(__x86_64__)
    if (isas[i] != Isa::avx2) continue;
    for (bool bfloat16 : {false, true}) run_cases(machine_of("avx512's 16 lanes on avx2", lanes16_kernels, bfloat16), wanted);
#endif
  }
  return report();
}
