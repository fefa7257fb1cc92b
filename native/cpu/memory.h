// Memory that the products walk through.
#pragma once

#include <cstddef>

namespace desap {

// At least 64-byte aligned, not initialised; null when memory is short. Large blocks are made of large pages where the
// system grants them: prefetching stops at the end of a page, and a product of 4 MB would touch a thousand small ones.
void* allocate_memory(size_t bytes);
void free_memory(void*);

}  // namespace desap
