// The 16 lanes of the AVX-512 kernels, compiled for AVX2: the compiler makes each vector of two registers. A machine without
// AVX-512 tests with it everything about that source but the instructions themselves: lane counts, tails, tiles, panels. Products
// of bfloat16 numbers are done as their definition says. In an addon with DESAP_LANES16 it takes the place of avx512bf16.cc.
#include "../cpu/isa.h"

#if defined(__x86_64__)

DESAP_BEGIN_REGION("avx2,fma,f16c")

#if defined(DESAP_LANES16)
#define DESAP_ISA avx512bf16
#else
#define DESAP_ISA lanes16
namespace desap {
extern const Kernels lanes16_kernels;
}
#endif
#define DESAP_LANES 16
#define DESAP_TILE_ROWS 6
#define DESAP_TILE_VECTORS 4
#define DESAP_NARROW_REGISTERS
#define DESAP_BF16
#define DESAP_EMULATED_BF16

#include "../cpu/kernels.inc"

DESAP_END_REGION

#endif
