// CUDA's Context: a GPU, a precision, and streams, each with its workspace and its graphs. A stream runs one job at a time;
// several threads may use one context, each takes a stream for the length of its run (kernels.h's rule of one thread at a
// time is the CPU's).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../kernels.h"

namespace desap::cuda {

struct DeviceInfo {
  int index;
  std::string name;
  int major, minor;      // compute capability
  int64_t memory_bytes;
};

// Whether CUDA can be used here, and why not: no driver, a driver too old (with both versions), no device, or no device
// of a capability that this build has code for. Never fails.
struct Availability {
  bool available;
  std::string reason;                 // empty when available
  std::vector<DeviceInfo> devices;    // those that can be used
};
Availability availability();

struct ContextOptions {
  int device = 0;
  Precision precision = Precision::fp32;
  int streams = 2;          // jobs under way at the same time
};
// device_failed with the driver's word, out_of_memory.
Status context_create(const ContextOptions&, Context**);
// No job may be running.
void context_destroy(Context*);

// Page-locked memory that the GPU reads and writes in place; null when there is none to have.
void* host_allocate(size_t bytes);
void host_free(void*);

}  // namespace desap::cuda
