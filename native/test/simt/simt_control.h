// What the emulator pretends to be, and what goes wrong.
//
// From the environment, read when it is first needed:
//   DESAP_SIMT_SEED        order of blocks and threads (default 1); a failure's message names it
//   DESAP_SIMT_DEVICES     number of devices (1); 0: cudaErrorNoDevice
//   DESAP_SIMT_DRIVER      driver's version (13000); 0: no driver; below 13000: cudaErrorInsufficientDriver
//   DESAP_SIMT_CAPABILITY  compute capability of the devices (9.0). Shared memory is 99 KB per block whatever it
//                          says: the least that the targets offer
//   DESAP_SIMT_MEMORY      bytes of device memory (8 GiB)
//   DESAP_SIMT_FAIL        "allocation 3 2", "launch 1 719", "call 20 999" or "call 2 999 cudaSetDevice": from now on the n-th allocation
//                          (cudaMalloc and cudaHostAlloc), launch or call of the runtime (of that function) fails with this cudaError_t.
//                          An error that kills a CUDA context kills the emulated one: every later call returns it.
//                          From a launch such an error comes when the kernel runs (in a graph, too), not when it is
//                          enqueued. "call" counts what can fail on a sound device: all but destroying and freeing.
// and, for other processes and JavaScript, from the file DESAP_SIMT_CONTROL names: lines of a name as above in lower
// case, without the prefix, and its value ("fail launch 1 719"). It is read again at every call of the runtime; when
// its text has changed, what it says (over the environment) holds from then on, counting begins anew, and a dead device
// works again. When a fault comes, the file of that name with ".fired" behind it gets the text.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace desap::simt {

enum class Fault { none, allocation, launch, call };

struct Settings {
  uint64_t seed = 1;
  int devices = 1;
  int driver = 13000;
  int major = 9, minor = 0;
  size_t memory = size_t{8} << 30;
  Fault fault = Fault::none;
  int64_t nth = 0;  // 1: the next
  std::string function;  // of calls: those of this function alone count; empty: all
  cudaError_t error = cudaSuccess;
};
Settings settings();
// From now on; counting begins anew, a dead device works again.
void configure(const Settings&);
// Whether what was to fail has failed since.
bool failed();

// What has been created and not been given back.
struct Live {
  int64_t allocations, bytes;  // device and pinned memory
  int64_t streams, events, graphs, executables;
};
Live live();

// Failures that the engine finds (engine.h) and writes outside device memory print a message and abort the process;
// while collecting they end their launch only.
void collect_failures(bool);
std::vector<std::string> take_failures();

}  // namespace desap::simt
