// The CPU's Context: which instruction set, which threads.
#pragma once

#include "../kernels.h"

namespace desap {

enum class Isa : int { scalar = 0, neon, avx2, avx512 };

// Instruction sets that this binary holds and this processor (and its operating system) can run, best first.
int supported_isas(Isa out[4]);
const char* isa_name(Isa);

struct ContextOptions {
  int threads;  // >= 1; the calling thread counts as one
  Isa isa;      // must be supported
};
Status context_create(const ContextOptions&, Context**);
// Joins the pool's threads. No kernel may be running.
void context_destroy(Context*);

}  // namespace desap
