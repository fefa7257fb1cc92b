// Plain C++: runs on any processor, and is what the vector code is compared with.
#include "isa.h"

#define DESAP_ISA scalar
#define DESAP_LANES 1
#define DESAP_TILE_ROWS 4
#define DESAP_TILE_VECTORS 4

#include "kernels.inc"
