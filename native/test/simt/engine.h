// Executes CUDA kernels on the CPU: the CTAs of a launch one after the other on the calling thread, each CUDA thread a
// fiber. A fiber runs until it has to wait for others, then another one is drawn by lot: what only works in one order
// fails soon.
//
// Reported as failures (simt_control.h says what then happens): threads of a warp in different warp-wide operations, or
// in one that names lanes that have exited; threads of a block at different barriers; deadlock; addresses for cp.async
// and ldmatrix that are not aligned or not in the block's shared memory; writes beyond either end of shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// Of the fiber that runs on this thread.
inline thread_local uint3 threadIdx{}, blockIdx{};
inline thread_local dim3 blockDim{}, gridDim{};

namespace desap::simt {

constexpr unsigned warp_size = 32;
constexpr unsigned full_mask = 0xffffffffu;

// A place in a kernel's source, taken where an operation is called.
struct Here {
  const char* file;
  int line;
  static constexpr Here here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  bool overlap;                   // programmatic dependent launch: every thread must wait for the predecessor
  const char* what;               // for messages
  std::function<void()> thread;   // calls the kernel
};
// False where a failure was reported; the rest of the launch has then not been run.
bool run(const Launch&);

// What poisoned memory holds in every 32 bits: NaN as float32, and as binary16 or bfloat16 in both halves.
constexpr uint32_t poison_word = 0x7fa57fa5u;
void poison(void* memory, size_t bytes);

// False where these bytes reach beyond an end of device or pinned memory.
bool readable(const void* from, size_t bytes);

// A failure outside kernels: prints and aborts, or is collected.
void report(const std::string& message);

// ---- Operations, called by kernels ----------------------------------------------------------------------------------

// The lanes in `mask` meet; the last one calls execute(arguments by lane, mask), then all go on. Lanes must agree in
// mask, execute and place.
using Execute = void (*)(void* const* arguments, unsigned mask);
void collective(const char* name, unsigned mask, Execute execute, void* argument, Here here);

void barrier(Here here);                          // all threads of the block that have not exited
[[noreturn]] void fail(const std::string& message);  // ends the launch

void* shared_memory(size_t bytes_needed);
uint32_t shared_offset(const void* pointer);

// cp.async is executed as late as is permitted, when its own thread waits; until then the target holds poison.
void copy_async(void* to, const void* from, bool valid, Here here);
void copy_commit();
void copy_wait(int pending);

void load_matrices(uint32_t* r, const void* row, bool transposed, Here here);
void multiply_f16(float* d, const uint32_t* a, const uint32_t* b, Here here);
void multiply_bf16(float* d, const uint32_t* a, const uint32_t* b, Here here);

void wait_for_predecessor();

}  // namespace desap::simt
