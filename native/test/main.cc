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
  Isa isas[4];
  const int count = supported_isas(isas);
  for (int i = 0; i < count; i++) {
    run_cases(machine_of(isas[i]), wanted);
#if defined(__x86_64__)
    if (isas[i] == Isa::avx2) run_cases(machine_of("avx512's 16 lanes on avx2", lanes16_kernels), wanted);
#endif
  }
  return report();
}
