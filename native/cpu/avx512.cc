// AVX-512 F, BW, DQ and VL: 32 registers of 16 lanes. A tile of 6 x 64 has 24 accumulators, 4 columns of B.
#include "isa.h"

#if defined(__x86_64__)

DESAP_BEGIN_REGION("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#define DESAP_ISA avx512
#define DESAP_LANES 16
#define DESAP_TILE_ROWS 6
#define DESAP_TILE_VECTORS 4

#include "kernels.inc"

DESAP_END_REGION

#endif
