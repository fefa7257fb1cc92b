// What differs between the CPU addon and the CUDA addon. Each has one file that implements this.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "../kernels.h"
#include "js.h"

namespace desap::device {

extern const char* const kind;  // "cpu" or "cuda"

// Adds to the addon's exports what only this kind has: `isas` of the CPU, `status` of CUDA.
void add_exports(Napi::Env, Napi::Object exports);

// In the order of Precision; the words of src/devices/driver.ts.
constexpr const char* precisions[] = {"fp32", "fp16", "bf16"};

// No kernel may be running.
void close(Context*);
struct Close {
  void operator()(Context* context) const { close(context); }
};
using ContextPointer = std::unique_ptr<Context, Close>;

struct Opened {
  ContextPointer context;
  std::string device;          // "cpu", "cuda:0"
  std::string description;     // in words: instruction set and threads, or the GPU
  const char* precision = "";  // one of `precisions`: what the products are computed in
  int streams = 1;             // jobs that it runs at the same time
};
// Reads the options of `new Context(options)` and opens the device. Throws Fault.
Opened open(const Napi::Value& options);

// Page-locked memory that the device reads in place, or null where there is none to have. Any thread.
void* allocate_pinned(size_t bytes);
void free_pinned(void*);

}  // namespace desap::device
