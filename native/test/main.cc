// Runs every case on every instruction set that this machine supports; an argument selects cases by part of their name.
#include <chrono>

#include "harness.h"

int main(int argc, char** argv) {
  using namespace desap;
  using namespace desap::test;
  Isa isas[4];
  const int count = supported_isas(isas);
  for (int i = 0; i < count; i++) {
    const auto start = std::chrono::steady_clock::now();
    {
      const Machine machine(isas[i]);
      for (const Case& c : cases()) {
        if (argc > 1 && !std::strstr(c.name, argv[1])) continue;
        place = std::string(c.name) + " [" + isa_name(isas[i]) + "]";
        c.run(machine);
      }
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s: %.1f s\n", isa_name(isas[i]), seconds);
  }
  std::printf("%d passed, %d failed\n", counts.passed, counts.failed);
  return counts.failed == 0 ? 0 : 1;
}
