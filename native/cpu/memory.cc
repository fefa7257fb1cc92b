#include "memory.h"

#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace desap {
namespace {

constexpr size_t cache_line = 64;
constexpr size_t large_page = size_t{1} << 21;

}  // namespace

void* allocate_memory(size_t bytes) {
  const size_t alignment = bytes < large_page ? cache_line : large_page;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes) != 0) return nullptr;
#if defined(__linux__)
  if (alignment == large_page) madvise(memory, bytes, MADV_HUGEPAGE);  // a hint: to be without it is no error
#endif
  return memory;
}

void free_memory(void* memory) { std::free(memory); }

}  // namespace desap
