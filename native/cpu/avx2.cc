// AVX2, FMA and F16C: 16 registers of 8 lanes. A tile of 6 x 16 has 12 accumulators, 2 columns of B, 1 broadcast of A.
#include "isa.h"

#if defined(__x86_64__)

DESAP_BEGIN_REGION("avx2,fma,f16c")

#define DESAP_ISA avx2
#define DESAP_LANES 8
#define DESAP_TILE_ROWS 6
#define DESAP_TILE_VECTORS 2

#include "kernels.inc"

DESAP_END_REGION

#endif
