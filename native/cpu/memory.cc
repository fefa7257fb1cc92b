#include "memory.h"

#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif

namespace desap {
namespace {

constexpr size_t cache_line = 64;
constexpr size_t large_page = size_t{1} << 21;

int64_t ask_second_level_cache() {
  int64_t size = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#elif defined(__APPLE__)
  size_t length = sizeof size;
  if (sysctlbyname("hw.l2cachesize", &size, &length, nullptr, 0) != 0) size = 0;
#endif
  return size > 0 ? size : int64_t{512} << 10;
}

}  // namespace

void* allocate_memory(size_t bytes) {
  const size_t alignment = bytes < large_page ? cache_line : large_page;
#if defined(_WIN32)
  void* memory = _aligned_malloc(bytes, alignment);
#else
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes) != 0) return nullptr;
#endif
#if defined(__linux__)
  // Hints: to be without large pages is no error. Pages that the allocator has from an earlier block would stay small: they go
  // back to the system first.
  if (alignment == large_page) {
    const size_t whole = bytes / large_page * large_page;
    madvise(memory, whole, MADV_DONTNEED);
    madvise(memory, whole, MADV_HUGEPAGE);
  }
#endif
  return memory;
}

void free_memory(void* memory) {
#if defined(_WIN32)
  _aligned_free(memory);
#else
  std::free(memory);
#endif
}

int64_t second_level_cache() {
  static const int64_t size = ask_second_level_cache();
  return size;
}

}  // namespace desap
