// NEON, the baseline of 64-bit Arm: 32 registers of 4 lanes. A tile of 6 x 16 has 24 accumulators, 4 columns of B.
#include "isa.h"

#if defined(__aarch64__)

#define DESAP_ISA neon
#define DESAP_LANES 4
#define DESAP_TILE_ROWS 6
#define DESAP_TILE_VECTORS 4

#include "kernels.inc"

#endif
