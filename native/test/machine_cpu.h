// The CPU's instruction sets as machines: for each, contexts of several thread counts.
#pragma once

#include <cstdlib>
#include <vector>

#include "../cpu/dispatch.h"
#include "harness.h"

namespace desap::test {

// An emulated processor, or one under a sanitizer.
inline bool small() { return std::getenv("DESAP_SMALL") != nullptr; }

inline std::vector<int> thread_counts() { return small() ? std::vector<int>{1, 3} : std::vector<int>{1, 2, 3, 5}; }

// bfloat16: 8 bits of an operand where float32 has 24.
inline Machine machine_of(const std::string& name, bool bfloat16) {
  Machine machine;
  machine.name = name + (bfloat16 ? ", bfloat16 operands" : "");
  machine.precision = bfloat16 ? Precision::bf16 : Precision::fp32;
  machine.operand_error = bfloat16 ? 3200 : 1;
  if (small()) machine.most_work = 2e7;
  return machine;
}

inline Machine machine_of(const std::string& name, const Kernels& kernels, bool bfloat16) {
  Machine machine = machine_of(name, bfloat16);
  for (int threads : thread_counts()) machine.contexts.emplace_back(new Context(kernels, threads, bfloat16), context_destroy);
  return machine;
}

inline Machine machine_of(Isa isa, bool bfloat16) {
  Machine machine = machine_of(isa_name(isa), bfloat16);
  for (int threads : thread_counts()) {
    Context* context = nullptr;
    if (check(context_create({threads, isa, bfloat16}, &context).good(), "context"))
      machine.contexts.emplace_back(context, context_destroy);
  }
  return machine;
}

}  // namespace desap::test
