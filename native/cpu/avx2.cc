// AVX2, FMA and F16C: 16 registers of 8 lanes. A tile of 6 x 16 has 12 accumulators, 2 columns of B, 1 broadcast of A.
#include "isa.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define DESAP_ISA avx2
#define DESAP_LANES 8
#define DESAP_TILE_ROWS 6
#define DESAP_TILE_VECTORS 2

#include "kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
