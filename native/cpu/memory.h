// Memory that the products walk through.
#pragma once

#include <cstddef>
#include <cstdint>

namespace desap {

// At least 64-byte aligned, not initialised; null when memory is short. Large blocks are made of large pages where the
// system grants them: prefetching stops at the end of a page, and a product of 4 MB would touch a thousand small ones.
void* allocate_memory(size_t bytes);
void free_memory(void*);

// Bytes of the cache between a core's first level and what cores share; 512 KB where the system does not say.
int64_t second_level_cache();

}  // namespace desap
