// The CPU's instruction sets as machines: for each, contexts of several thread counts.
#pragma once

#include "../cpu/dispatch.h"
#include "harness.h"

namespace desap::test {

inline Machine machine_of(const std::string& name, const Kernels& kernels) {
  Machine machine;
  machine.name = name;
  for (int threads : {1, 2, 3, 5}) machine.contexts.emplace_back(new Context(kernels, threads), context_destroy);
  return machine;
}

inline Machine machine_of(Isa isa) {
  Machine machine;
  machine.name = isa_name(isa);
  for (int threads : {1, 2, 3, 5}) {
    Context* context = nullptr;
    if (check(context_create({threads, isa}, &context).good(), "context"))
      machine.contexts.emplace_back(context, context_destroy);
  }
  return machine;
}

}  // namespace desap::test
