// What differs between the CPU addon and the CUDA addon. Each has one file that implements this.
#pragma once

#include <cstddef>
#include <string>

#include "../kernels.h"
#include "js.h"

namespace desap::device {

extern const char* const kind;  // "cpu" or "cuda"

// Adds to the addon's exports what only this kind has: `isas` of the CPU, `status` of CUDA.
void add_exports(Napi::Env, Napi::Object exports);

struct Opened {
  Context* context = nullptr;  // for close()
  std::string description;     // instruction set and threads, or the card
  int lanes = 1;               // jobs that it runs at the same time
};
// Reads the options of `new Context(options)` and opens the device. Throws Fault.
Opened open(const Napi::Value& options);
// No kernel may be running.
void close(Context*);

// Page-locked memory that the device reads in place, or null where there is none to have. Any thread.
void* allocate_pinned(size_t bytes);
void free_pinned(void*);

}  // namespace desap::device
