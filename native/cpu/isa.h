// What every instruction set's translation unit includes before it opens its target region.
//
// A region (`#pragma GCC target`, `#pragma clang attribute`) gives the functions inside it an instruction set; a
// compiler flag per file would give it to every inline function that the file happens to instantiate, and the linker
// keeps only one copy of those: the program would then run, say, AVX-512 code on any processor. Hence all shared
// declarations come first, from here, and inside a region nothing of the standard library is instantiated.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "dispatch.h"
#include "linear_layout.h"
#include "memory.h"

namespace desap {
template struct MatrixOf<float>;
template struct MatrixOf<const float>;
}  // namespace desap

// Opens and closes a region whose functions have the instruction set, given in the compiler's own words.
#define DESAP_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define DESAP_BEGIN_REGION(isa) DESAP_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define DESAP_END_REGION DESAP_PRAGMA(clang attribute pop)
#else
#define DESAP_BEGIN_REGION(isa) DESAP_PRAGMA(GCC push_options) DESAP_PRAGMA(GCC target(isa))
#define DESAP_END_REGION DESAP_PRAGMA(GCC pop_options)
#endif
