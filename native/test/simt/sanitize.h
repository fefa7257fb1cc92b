// AddressSanitizer has to know about changes of stacks. It traps reads, too, of what is forbidden.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace desap::simt {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool sanitized = true;
inline void forbid(const void* memory, size_t bytes) { ASAN_POISON_MEMORY_REGION(memory, bytes); }
inline void permit(const void* memory, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(memory, bytes); }
inline void leave_stack(void** from, const void* bottom, size_t bytes) {
  __sanitizer_start_switch_fiber(from, bottom, bytes);
}
inline void enter_stack(void* to) { __sanitizer_finish_switch_fiber(to, nullptr, nullptr); }
#else
constexpr bool sanitized = false;
inline void forbid(const void*, size_t) {}
inline void permit(const void*, size_t) {}
inline void leave_stack(void**, const void*, size_t) {}
inline void enter_stack(void*) {}
#endif

}  // namespace desap::simt
