// The 16 lanes of the AVX-512 kernels, compiled for AVX2: the compiler makes each vector of two registers. A machine without
// AVX-512 tests with it everything about that source but the instructions themselves: lane counts, tails, tiles, panels.
#include "../cpu/isa.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define DESAP_ISA lanes16
#define DESAP_LANES 16
#define DESAP_TILE_ROWS 6
#define DESAP_TILE_VECTORS 4
#define DESAP_NARROW_REGISTERS

namespace desap {
extern const Kernels lanes16_kernels;
}

#include "../cpu/kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
