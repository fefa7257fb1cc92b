// The engine: fibers, their scheduler, and the operations of a warp and a block.
//
// Fibers are created with ucontext and switched with _setjmp and _longjmp, which do not touch the signal mask. The
// checked longjmp of fortified builds refuses to change stacks.
#undef _FORTIFY_SOURCE

#include "simt.h"

#include <pthread.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "sanitize.h"
#include "simt_control.h"

namespace desap::simt {
namespace {

constexpr unsigned max_threads = 1024;
constexpr size_t stack_bytes = 256 * 1024;
constexpr size_t guard_bytes = 256;
constexpr unsigned char guard_byte = 0xc3;

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}
std::string text(const char* operation, Here here) {
  const char* name = std::strrchr(here.file, '/');
  return std::string(operation) + " (" + (name ? name + 1 : here.file) + ":" + std::to_string(here.line) + ")";
}
bool same(Here a, Here b) { return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0); }

// xorshift64*
struct Random {
  uint64_t state;
  uint64_t operator()() {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull >> 16;
  }
};

unsigned first_bit(unsigned mask, unsigned from) {  // the first set bit at or after `from`, cyclically
  from &= 31;
  const unsigned rotated = mask >> from | mask << ((32 - from) & 31);
  return (static_cast<unsigned>(__builtin_ctz(rotated)) + from) & 31;
}

// ------------------------------------------------------------------------------------------------------------ fibers

struct Copy {
  unsigned char* to;
  const unsigned char* from;  // null: zeros
  int group;
};

struct Context {
  jmp_buf registers;
  unsigned char* stack = nullptr;  // its lowest byte
  size_t bytes = 0;
  void* sanitizer = nullptr;
};

struct Fiber {
  Context context;
  bool started = false;
  uint3 index;
  unsigned warp, lane;

  // Where it waits.
  const char* operation = nullptr;
  Here here{};
  unsigned mask = 0;
  Execute execute = nullptr;

  std::vector<Copy> copies;
  int groups = 0;               // cp.async groups that have been committed
  bool saw_predecessor = false;  // wait_for_predecessor was called
};

struct Warp {
  unsigned alive = 0, ready = 0;
  unsigned meeting = 0;      // wait in a collective
  unsigned at_barrier = 0;
  void* arguments[warp_size];
};

// One per operating system thread that launches kernels.
class Engine {
 public:
  Engine() {
    pthread_attr_t attributes;
    void* stack = nullptr;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &launcher_.bytes);
    pthread_attr_destroy(&attributes);
    launcher_.stack = static_cast<unsigned char*>(stack);
  }
  ~Engine() {
    if (stacks_) munmap(stacks_, max_threads * stack_bytes);
  }

  bool run(const Launch& launch);

  void collective(const char* name, unsigned mask, Execute execute, void* argument, Here here);
  void barrier(Here here);
  [[noreturn]] void fail(const std::string& message);
  unsigned char* shared(const void* pointer, const char* operation, Here here);

  Fiber* current = nullptr;
  unsigned char* shared_begin = nullptr;
  size_t shared_bytes = 0;

 private:
  static void main();
  [[noreturn]] void start(Fiber&, void** from);
  void run_block(uint3 block);
  [[gnu::noinline]] void enter();
  [[gnu::noinline]] void wait(Fiber&);
  [[noreturn, gnu::noinline]] void next(Context& from);
  [[noreturn]] void go(void** from, Context& to);
  void leave(Fiber&);
  void pass_barrier_if_complete();
  const Fiber* waits_for(const Fiber&);
  Fiber& fiber(unsigned warp, unsigned lane) { return *fibers_[warp * warp_size + lane]; }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  unsigned char* stacks_ = nullptr;
  Context launcher_;
  ucontext_t first_;  // of the fiber that is being started; on a stack it would leave a sanitizer's marks behind

  const Launch* launch_ = nullptr;
  Random random_{1};
  unsigned stay_ = 0;          // the warp changes when these bits of a random number are zero
  unsigned threads_ = 0, alive_ = 0, waiting_ = 0;
  unsigned barrier_first_ = 0;  // thread that came first to the barrier
  unsigned warp_ = 0, ready_warps_ = 0;
  Warp warps_[max_threads / warp_size];
  bool failed_ = false;
};

thread_local Engine engine;

void Engine::start(Fiber& fiber, void** from) {
  const unsigned number = fiber.warp * warp_size + fiber.lane;
  if (!stacks_) {
    void* memory = mmap(nullptr, max_threads * stack_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stacks_ = static_cast<unsigned char*>(memory);
  }
  // The lowest page faults on overflow. Tops are shifted against each other, or they would share cache sets.
  Context& context = fiber.context;
  context.stack = stacks_ + number * stack_bytes;
  context.bytes = stack_bytes - number % 32 * 1088;
  context.sanitizer = nullptr;
  mprotect(context.stack, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
  permit(context.stack, stack_bytes);
  getcontext(&first_);
  first_.uc_stack.ss_sp = context.stack;
  first_.uc_stack.ss_size = context.bytes;
  first_.uc_link = nullptr;
  makecontext(&first_, main, 0);
  fiber.started = true;
  leave_stack(from, context.stack, context.bytes);
  setcontext(&first_);
  std::abort();
}

void Engine::main() {
  Engine& e = engine;
  enter_stack(nullptr);
  while (true) {
    e.launch_->thread();
    e.leave(*e.current);
  }
}

// `from`: where the stack that is left keeps the sanitizer's state; null when it is given up.
void Engine::go(void** from, Context& to) {
  leave_stack(from, to.stack, to.bytes);
  _longjmp(to.registers, 1);
}

// Starts the block's fibers; returns when all have exited or one has failed.
void Engine::enter() {
  if (!_setjmp(launcher_.registers)) next(launcher_);
  enter_stack(launcher_.sanitizer);
}

// Lets others run until the fiber is drawn again.
void Engine::wait(Fiber& fiber) {
  if (!_setjmp(fiber.context.registers)) next(fiber.context);
  enter_stack(fiber.context.sanitizer);
}

void Engine::next(Context& from) {
  if (!ready_warps_) {
    if (alive_ > 0) fail("deadlock");  // every cause that is known is found where it begins
    go(&from.sanitizer, launcher_);
  }
  const uint64_t r = random_();
  if (!(ready_warps_ >> warp_ & 1) || (r >> 10 & stay_) == 0) warp_ = first_bit(ready_warps_, static_cast<unsigned>(r));
  Warp& warp = warps_[warp_];
  const unsigned lane = first_bit(warp.ready, static_cast<unsigned>(r >> 5));
  warp.ready &= ~(1u << lane);
  if (!warp.ready) ready_warps_ &= ~(1u << warp_);
  current = &fiber(warp_, lane);
  threadIdx = current->index;
  if (!current->started) start(*current, &from.sanitizer);
  go(&from.sanitizer, current->context);
}

void Engine::leave(Fiber& fiber) {
  Warp& warp = warps_[fiber.warp];
  if (launch_->overlap && !fiber.saw_predecessor) {
    fail("the thread ended without wait_for_predecessor() in a launch that may overlap with its predecessor");
  }
  if (const Fiber* other = waits_for(fiber)) {
    fail("the thread exits, but thread " + text(other->index) + " waits for it in " +
         text(other->operation, other->here));
  }
  fiber.copies.clear();
  warp.alive &= ~(1u << fiber.lane);
  alive_--;
  pass_barrier_if_complete();
  wait(fiber);
}

void Engine::run_block(uint3 block) {
  blockIdx = block;
  for (unsigned w = 0; w * warp_size < threads_; w++) {
    const unsigned count = std::min(threads_ - w * warp_size, warp_size);
    const unsigned all = count == warp_size ? full_mask : (1u << count) - 1;
    warps_[w].alive = warps_[w].ready = all;
    warps_[w].meeting = warps_[w].at_barrier = 0;
    ready_warps_ |= 1u << w;
  }
  for (unsigned t = 0; t < threads_; t++) {
    Fiber& f = *fibers_[t];
    f.index = {t % launch_->block.x, t / launch_->block.x % launch_->block.y, t / launch_->block.x / launch_->block.y};
    f.groups = 0;
    f.saw_predecessor = false;
  }
  alive_ = threads_;
  waiting_ = 0;
  // Warps that advance evenly find other faults than warps that run ahead as far as barriers permit.
  constexpr unsigned stays[] = {0, 15, 255, 4095};
  stay_ = stays[random_() % 4];
  poison(shared_begin, shared_bytes);
  enter();
  current = nullptr;
}

bool Engine::run(const Launch& launch) {
  static std::atomic<uint64_t> launches{0};
  random_ = {(settings().seed + 1) * 0x9e3779b97f4a7c15ull ^ (++launches * 0xbf58476d1ce4e5b9ull)};
  random_.state |= 1;
  launch_ = &launch;
  failed_ = false;
  threads_ = launch.block.x * launch.block.y * launch.block.z;
  while (fibers_.size() < threads_) {
    auto fiber = std::make_unique<Fiber>();
    fiber->warp = static_cast<unsigned>(fibers_.size()) / warp_size;
    fiber->lane = static_cast<unsigned>(fibers_.size()) % warp_size;
    fibers_.push_back(std::move(fiber));
  }
  blockDim = launch.block;
  gridDim = launch.grid;

  // Aligned to 128 bytes, as ptx.cuh declares it, and not to more. Ends where it was said to end.
  std::vector<unsigned char> memory(launch.shared_bytes + 2 * guard_bytes + 256 + 128);
  const size_t to_256 = 256 - reinterpret_cast<uintptr_t>(memory.data()) % 256;
  shared_bytes = launch.shared_bytes;
  shared_begin = memory.data() + to_256 + 128 + guard_bytes;
  unsigned char* const guards[] = {shared_begin - guard_bytes, shared_begin + shared_bytes};
  for (unsigned char* guard : guards) {
    std::memset(guard, guard_byte, guard_bytes);
    forbid(guard, guard_bytes);
  }

  const uint64_t blocks = static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
  std::vector<uint64_t> order(blocks);
  for (uint64_t i = 0; i < blocks; i++) {
    const uint64_t j = random_() % (i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  for (uint64_t i = 0; i < blocks && !failed_; i++) {
    const uint64_t b = order[i], rest = b / launch.grid.x;
    const uint3 block = {static_cast<unsigned>(b % launch.grid.x), static_cast<unsigned>(rest % launch.grid.y),
                         static_cast<unsigned>(rest / launch.grid.y)};
    run_block(block);
    if (sanitized) continue;  // the guards trap
    for (unsigned char* guard : guards) {
      const bool intact = std::all_of(guard, guard + guard_bytes, [](unsigned char c) { return c == guard_byte; });
      if (failed_ || intact) continue;
      failed_ = true;
      report("block " + text(block) + " wrote " + (guard < shared_begin ? "before the beginning" : "beyond the end") +
             " of its " + std::to_string(shared_bytes) + " bytes of shared memory in " + launch.what);
    }
  }
  for (unsigned char* guard : guards) permit(guard, guard_bytes);
  launch_ = nullptr;
  return !failed_;
}

void Engine::fail(const std::string& message) {
  if (!current) {
    std::fprintf(stderr, "simt: %s called outside a kernel\n", message.c_str());
    std::abort();
  }
  report("block " + text(blockIdx) + " thread " + text(current->index) + ": " + message + " in " + launch_->what);
  // The stacks are given up as they are; kernels own nothing.
  for (unsigned t = 0; t < threads_; t++) {
    fibers_[t]->started = false;
    fibers_[t]->copies.clear();
  }
  ready_warps_ = 0;
  failed_ = true;
  go(nullptr, launcher_);
}

// A thread that waits for this one in a collective.
const Fiber* Engine::waits_for(const Fiber& me) {
  const Warp& warp = warps_[me.warp];
  for (unsigned lane = 0; lane < warp_size; lane++) {
    if (warp.meeting >> lane & 1 && fiber(me.warp, lane).mask >> me.lane & 1) return &fiber(me.warp, lane);
  }
  return nullptr;
}

// -------------------------------------------------------------------------------------------------------- operations

void Engine::collective(const char* name, unsigned mask, Execute execute, void* argument, Here here) {
  if (!current) fail(name);
  Fiber& me = *current;
  Warp& warp = warps_[me.warp];
  const unsigned bit = 1u << me.lane;
  if (!(mask & bit)) fail(text(name, here) + " with a mask that lacks the calling lane");
  if (mask & ~warp.alive) {
    fail(text(name, here) + " names lane " + std::to_string(first_bit(mask & ~warp.alive, 0)) +
         ", which has exited or never was");
  }
  if (mask & (warp.meeting | warp.at_barrier)) {
    const Fiber& other = fiber(me.warp, first_bit(mask & (warp.meeting | warp.at_barrier), 0));
    if (other.execute != execute || other.mask != mask || !same(other.here, here)) {
      fail("the thread is at " + text(name, here) + ", but thread " + text(other.index) + " of its warp waits in " +
           text(other.operation, other.here) + (other.mask == mask ? "" : " (masks differ)"));
    }
  }
  me.operation = name;
  me.here = here;
  me.mask = mask;
  me.execute = execute;
  warp.arguments[me.lane] = argument;
  warp.meeting |= bit;
  if ((warp.meeting & mask) != mask) {
    wait(me);
    return;
  }
  execute(warp.arguments, mask);
  warp.meeting &= ~mask;
  warp.ready |= mask & ~bit;
  if (warp.ready) ready_warps_ |= 1u << me.warp;
}

void Engine::barrier(Here here) {
  if (!current) fail("__syncthreads");
  Fiber& me = *current;
  Warp& warp = warps_[me.warp];
  const Fiber* other = waits_for(me);
  if (!other && waiting_ > 0 && !same(fibers_[barrier_first_]->here, here)) other = fibers_[barrier_first_].get();
  if (other) {
    fail("the thread is at " + text("__syncthreads", here) + ", but thread " + text(other->index) + " waits in " +
         text(other->operation, other->here));
  }
  if (waiting_++ == 0) barrier_first_ = me.warp * warp_size + me.lane;
  me.operation = "__syncthreads";
  me.here = here;
  me.mask = full_mask;
  me.execute = nullptr;
  warp.at_barrier |= 1u << me.lane;
  pass_barrier_if_complete();
  wait(me);
}

void Engine::pass_barrier_if_complete() {
  if (waiting_ == 0 || waiting_ < alive_) return;
  waiting_ = 0;
  for (unsigned w = 0; w * warp_size < threads_; w++) {
    warps_[w].ready |= warps_[w].at_barrier;
    warps_[w].at_barrier = 0;
    if (warps_[w].ready) ready_warps_ |= 1u << w;
  }
}

// `pointer` as the address of 16 bytes in shared memory.
unsigned char* Engine::shared(const void* pointer, const char* operation, Here here) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(shared_begin);
  if (offset >= shared_bytes || offset + 16 > shared_bytes) {
    fail(text(operation, here) + ": 16 bytes at offset " + std::to_string(static_cast<int64_t>(offset)) +
         " are not within the " +
         std::to_string(shared_bytes) + " bytes of shared memory");
  }
  if (offset % 16 != 0) {
    fail(text(operation, here) + ": shared address " + std::to_string(offset) + " is not a multiple of 16");
  }
  return shared_begin + offset;
}

struct MatrixRows {
  uint32_t* r;
  const unsigned char* row;
};

template <bool transposed>
void load_matrices_execute(void* const* arguments, unsigned) {
  uint16_t matrix[4][8][8];
  for (unsigned l = 0; l < warp_size; l++) {
    std::memcpy(matrix[l / 8][l % 8], static_cast<const MatrixRows*>(arguments[l])->row, 16);
  }
  for (unsigned l = 0; l < warp_size; l++) {
    const unsigned i = l / 4, j = 2 * (l % 4);
    for (unsigned m = 0; m < 4; m++) {
      const uint32_t low = transposed ? matrix[m][j][i] : matrix[m][i][j];
      const uint32_t high = transposed ? matrix[m][j + 1][i] : matrix[m][i][j + 1];
      static_cast<const MatrixRows*>(arguments[l])->r[m] = low | high << 16;
    }
  }
}

struct Product {
  float* d;
  const uint32_t *a, *b;
};

// Products of two 11-bit (8-bit) significands are exact in float32. PTX leaves the order and the rounding of the sums
// open; here k ascends and every sum is rounded to nearest: one order for every build, and within the error of any
// other.
template <float (*convert)(uint16_t)>
void multiply_execute(void* const* arguments, unsigned) {
  uint16_t a_bits[16][16], b_bits[16][8];
  float a[16][16], b[16][8], d[16][8];
  const auto put = [](uint32_t pair, uint16_t& low, uint16_t& high) {
    low = static_cast<uint16_t>(pair);
    high = static_cast<uint16_t>(pair >> 16);
  };
  for (unsigned l = 0; l < warp_size; l++) {
    const Product& p = *static_cast<const Product*>(arguments[l]);
    const unsigned g = l / 4, t = l % 4;
    put(p.a[0], a_bits[g][2 * t], a_bits[g][2 * t + 1]);
    put(p.a[1], a_bits[g + 8][2 * t], a_bits[g + 8][2 * t + 1]);
    put(p.a[2], a_bits[g][2 * t + 8], a_bits[g][2 * t + 9]);
    put(p.a[3], a_bits[g + 8][2 * t + 8], a_bits[g + 8][2 * t + 9]);
    put(p.b[0], b_bits[2 * t][g], b_bits[2 * t + 1][g]);
    put(p.b[1], b_bits[2 * t + 8][g], b_bits[2 * t + 9][g]);
    std::memcpy(&d[g][2 * t], p.d, 8);
    std::memcpy(&d[g + 8][2 * t], p.d + 2, 8);
  }
  for (unsigned i = 0; i < 256; i++) a[i / 16][i % 16] = convert(a_bits[i / 16][i % 16]);
  for (unsigned i = 0; i < 128; i++) b[i / 8][i % 8] = convert(b_bits[i / 8][i % 8]);
  for (unsigned i = 0; i < 16; i++) {
    for (unsigned k = 0; k < 16; k++) {
      for (unsigned j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    }
  }
  for (unsigned l = 0; l < warp_size; l++) {
    float* const result = static_cast<const Product*>(arguments[l])->d;
    std::memcpy(result, &d[l / 4][2 * (l % 4)], 8);
    std::memcpy(result + 2, &d[l / 4 + 8][2 * (l % 4)], 8);
  }
}

}  // namespace

bool run(const Launch& launch) { return engine.run(launch); }
void collective(const char* name, unsigned mask, Execute execute, void* argument, Here here) {
  engine.collective(name, mask, execute, argument, here);
}
void barrier(Here here) { engine.barrier(here); }
void fail(const std::string& message) { engine.fail(message); }

void poison(void* memory, size_t bytes) {
  auto* const at = static_cast<unsigned char*>(memory);
  for (size_t i = 0; i + 4 <= bytes; i += 4) std::memcpy(at + i, &poison_word, 4);
  std::memcpy(at + bytes / 4 * 4, &poison_word, bytes % 4);
}

void* shared_memory(size_t bytes_needed) {
  if (bytes_needed > engine.shared_bytes) {
    fail("shared memory of " + std::to_string(bytes_needed) + " bytes is used, but " +
         std::to_string(engine.shared_bytes) +
         " were launched");
  }
  return engine.shared_begin;
}
uint32_t shared_offset(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - engine.shared_begin);
}

void copy_async(void* to, const void* from, bool valid, Here here) {
  unsigned char* const target = engine.shared(to, "cp.async", here);
  if (valid) {
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
      fail(text("cp.async", here) + ": the source is not a multiple of 16");
    }
    if (!readable(from, 16)) fail(text("cp.async", here) + ": the source is outside its allocation");
  }
  poison(target, 16);
  Fiber& me = *engine.current;
  me.copies.push_back({target, valid ? static_cast<const unsigned char*>(from) : nullptr, me.groups});
}
void copy_commit() { engine.current->groups++; }
void copy_wait(int pending) {
  Fiber& me = *engine.current;
  size_t done = 0;  // copies are in the order of their groups
  for (; done < me.copies.size() && me.copies[done].group < me.groups - pending; done++) {
    const Copy& copy = me.copies[done];
    if (copy.from) std::memcpy(copy.to, copy.from, 16);
    if (!copy.from) std::memset(copy.to, 0, 16);
  }
  me.copies.erase(me.copies.begin(), me.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

void load_matrices(uint32_t* r, const void* row, bool transposed, Here here) {
  MatrixRows argument{r, engine.shared(row, "ldmatrix", here)};
  collective(transposed ? "ldmatrix.trans" : "ldmatrix", full_mask,
             transposed ? load_matrices_execute<true> : load_matrices_execute<false>, &argument, here);
}
void multiply_f16(float* d, const uint32_t* a, const uint32_t* b, Here here) {
  Product argument{d, a, b};
  collective("mma f16", full_mask, multiply_execute<cuda::ptx::from_f16>, &argument, here);
}
void multiply_bf16(float* d, const uint32_t* a, const uint32_t* b, Here here) {
  Product argument{d, a, b};
  collective("mma bf16", full_mask, multiply_execute<cuda::ptx::from_bf16>, &argument, here);
}

void wait_for_predecessor() { engine.current->saw_predecessor = true; }

}  // namespace desap::simt
