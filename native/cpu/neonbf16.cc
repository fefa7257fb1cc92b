// NEON with BFDOT (Armv8.6, optional from 8.2 on): the kernels of neon.cc, and linear and attention with bfloat16 operands.
#include "isa.h"

#if defined(__aarch64__)

#if defined(__clang__)
DESAP_BEGIN_REGION("bf16")
#else
DESAP_BEGIN_REGION("arch=armv8.2-a+bf16")
#endif

#define DESAP_ISA neonbf16
#define DESAP_LANES 4
#define DESAP_TILE_ROWS 6
#define DESAP_TILE_VECTORS 4
#define DESAP_BF16

#include "kernels.inc"

DESAP_END_REGION

#endif
