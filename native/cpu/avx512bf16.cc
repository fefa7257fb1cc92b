// AVX-512 with VDPBF16PS: the kernels of avx512.cc, and linear and attention with bfloat16 operands.
#include "isa.h"

#if defined(__x86_64__)

DESAP_BEGIN_REGION("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")

#define DESAP_ISA avx512bf16
#define DESAP_LANES 16
#define DESAP_TILE_ROWS 6
#define DESAP_TILE_VECTORS 4
#define DESAP_BF16

#include "kernels.inc"

DESAP_END_REGION

#endif
