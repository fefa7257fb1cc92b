// The CPU as a device: its instruction sets and threads.
#include "../cpu/context.h"
#include "device.h"

namespace desap::device {

const char* const kind = "cpu";

std::vector<std::string> isas() {
  Isa supported[4];
  const int count = supported_isas(supported);
  std::vector<std::string> names;
  for (int i = 0; i < count; i++) names.emplace_back(isa_name(supported[i]));
  return names;
}

std::string describe(int threads, const std::string& isa) {
  return "CPU, " + isa + ", " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
}

Status open(int threads, const std::string& isa, Context** context) {
  Isa supported[4];
  const int count = supported_isas(supported);
  for (int i = 0; i < count; i++) {
    if (isa == isa_name(supported[i])) return context_create({threads, supported[i]}, context);
  }
  return {Code::internal, "isa", -1};
}

void close(Context* context) { context_destroy(context); }

}  // namespace desap::device
