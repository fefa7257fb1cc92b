// AVX-512 F, BW, DQ and VL: 32 registers of 16 lanes. A tile of 6 x 64 has 24 accumulators, 4 columns of B.
#include "isa.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define DESAP_ISA avx512
#define DESAP_LANES 16
#define DESAP_TILE_ROWS 6
#define DESAP_TILE_VECTORS 4

#include "kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
