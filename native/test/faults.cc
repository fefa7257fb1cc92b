// Preloaded into Node: allocations and thread starts of an addon fail where a test says so, and what the addon has allocated and
// not freed is counted. test/fixtures/faults.mjs drives it, through a file that both map (DESAP_FAULTS names it).
//
// Of the addon is what is called from its code, directly or through the C++ library. Everybody else gets what they ask for: Node
// and V8 end the process when they have no memory.
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <dlfcn.h>
#include <new>

extern "C" void __libc_free(void*);
extern "C" void* __libc_memalign(size_t, size_t);

namespace {

struct Range {
  std::atomic<uint64_t> low, high;
  bool holds(const void* address) const {
    const uint64_t at = reinterpret_cast<uintptr_t>(address);
    return at >= low && at < high;
  }
};

enum Kind : int64_t { nothing, allocation, thread };

struct Shared {
  std::atomic<int64_t> kind;    // which of them fails
  std::atomic<int64_t> nth;     // counted down; the one that gets 0 fails
  std::atomic<int64_t> failed;  // how many did
  std::atomic<int64_t> live;    // allocations of the addon
  Range addon, library;         // code: the addon's, the C++ library's
};

Shared nobody{};
Shared* shared = &nobody;

// Addresses of what the addon has allocated: open addressing. Freed places are used again, but do not end a search.
constexpr size_t places = size_t{1} << 20;
constexpr uintptr_t empty = 0, freed = 1;
std::atomic<uintptr_t> table[places];

size_t place_of(uintptr_t address) { return (address >> 4) * 0x9e3779b97f4a7c15u >> 44; }

void* remember(void* memory) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  for (size_t i = place_of(address);; i = (i + 1) % places) {
    uintptr_t there = table[i];
    if ((there == empty || there == freed) && table[i].compare_exchange_strong(there, address)) break;
  }
  shared->live++;
  return memory;
}

void forget(const void* memory) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  for (size_t i = place_of(address); table[i] != empty; i = (i + 1) % places) {
    if (table[i] != address) continue;
    table[i] = freed;
    shared->live--;
    return;
  }
}

// Whether the first caller beyond the C++ library is the addon.
bool ours(const void* caller) {
  if (shared->addon.holds(caller)) return true;
  if (!shared->library.holds(caller)) return false;
  void* frames[16];
  const int count = backtrace(frames, 16);
  bool within = false;
  for (int i = 0; i < count; i++) {
    const bool library = shared->library.holds(frames[i]);
    if (within && !library) return shared->addon.holds(frames[i]);
    within = within || library;
  }
  return false;
}

bool refused(Kind kind) {
  if (shared->kind != kind || --shared->nth != 0) return false;
  shared->failed++;
  return true;
}

// Null where it fails.
void* allocate(size_t bytes, size_t alignment, const void* caller) {
  const bool mine = ours(caller);
  if (mine && refused(allocation)) return nullptr;
  if (bytes == 0) bytes = 1;
  void* const memory = alignment > alignof(std::max_align_t) ? __libc_memalign(alignment, bytes) : std::malloc(bytes);
  return memory && mine ? remember(memory) : memory;
}

void* allocate_or_throw(size_t bytes, size_t alignment, const void* caller) {
  void* const memory = allocate(bytes, alignment, caller);
  if (!memory) throw std::bad_alloc();
  return memory;
}

__attribute__((constructor)) void begin() {
  void* frame;
  backtrace(&frame, 1);  // the first call loads a library
  const char* const name = std::getenv("DESAP_FAULTS");
  const int file = name ? open(name, O_RDWR) : -1;
  if (file < 0) return;
  void* const mapped = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED) shared = static_cast<Shared*>(mapped);
}

}  // namespace

#define CALLER __builtin_return_address(0)

void* operator new(size_t bytes) { return allocate_or_throw(bytes, 0, CALLER); }
void* operator new[](size_t bytes) { return allocate_or_throw(bytes, 0, CALLER); }
void* operator new(size_t bytes, std::align_val_t alignment) { return allocate_or_throw(bytes, size_t(alignment), CALLER); }
void* operator new[](size_t bytes, std::align_val_t alignment) { return allocate_or_throw(bytes, size_t(alignment), CALLER); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes, 0, CALLER); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes, 0, CALLER); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

extern "C" {

int posix_memalign(void** memory, size_t alignment, size_t bytes) noexcept {
  void* const made = allocate(bytes, alignment, CALLER);
  if (!made) return ENOMEM;
  *memory = made;
  return 0;
}

void free(void* memory) noexcept {
  if (memory) forget(memory);
  __libc_free(memory);
}

int pthread_create(pthread_t* thread_, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) noexcept {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const Create create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  if (ours(CALLER) && refused(thread)) return EAGAIN;
  return create(thread_, attributes, run, argument);
}

}
