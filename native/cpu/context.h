// The CPU's Context: which instruction set, which threads.
#pragma once

#include "../kernels.h"

namespace desap {

enum class Isa : int { scalar = 0, neon, neonbf16, avx2, avx512, avx512bf16 };
constexpr int isa_count = 6;

// Instruction sets that this binary holds and this processor (and its operating system) can run, best first. One with
// bfloat16 products is the first only where they are faster than float32's, which is measured once.
int supported_isas(Isa out[isa_count]);
const char* isa_name(Isa);
bool has_bfloat16(Isa);

struct ContextOptions {
  int threads;  // >= 1; the calling thread counts as one
  Isa isa;      // must be supported
  bool bfloat16 = false;  // operands of linear and attention, where the instruction set multiplies them (has_bfloat16)
};
Status context_create(const ContextOptions&, Context**);
// Joins the pool's threads. No kernel may be running.
void context_destroy(Context*);

}  // namespace desap
