// Runs every case on every instruction set that this machine supports; an argument selects cases by part of their name.
#include <chrono>

#include "harness.h"

namespace desap {
#if defined(__x86_64__)
extern const Kernels lanes16_kernels;  // lanes16.cc
#endif

namespace test {
namespace {

void run(const char* name, const Machine& machine, const char* wanted) {
  const auto start = std::chrono::steady_clock::now();
  for (const Case& c : cases()) {
    if (wanted && !std::strstr(c.name, wanted)) continue;
    place = std::string(c.name) + " [" + name + "]";
    c.run(machine);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%s: %.1f s\n", name, seconds);
}

}  // namespace
}  // namespace test
}  // namespace desap

int main(int argc, char** argv) {
  using namespace desap;
  using namespace desap::test;
  const char* wanted = argc > 1 ? argv[1] : nullptr;
  Isa isas[4];
  const int count = supported_isas(isas);
  for (int i = 0; i < count; i++) {
    run(isa_name(isas[i]), Machine(isas[i]), wanted);
#if defined(__x86_64__)
    if (isas[i] == Isa::avx2) run("avx512's 16 lanes on avx2", Machine(lanes16_kernels), wanted);
#endif
  }
  std::printf("%d passed, %d failed\n", counts.passed, counts.failed);
  return counts.failed == 0 ? 0 : 1;
}
