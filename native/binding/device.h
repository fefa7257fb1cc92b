// What differs between the CPU addon and the CUDA addon. Each has one file that implements this.
#pragma once

#include <string>
#include <vector>

#include "../kernels.h"

namespace desap::device {

extern const char* const kind;  // "cpu" or "cuda"

// Instruction sets that this binary holds and this machine runs, best first.
std::vector<std::string> isas();
std::string describe(int threads, const std::string& isa);

// `isa` is one of `isas()`.
Status open(int threads, const std::string& isa, Context**);
// Joins the context's threads. No kernel may be running.
void close(Context*);

}  // namespace desap::device
