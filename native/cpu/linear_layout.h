// The layout behind the opaque Linear.
#pragma once

#include "../kernels.h"

namespace desap {

// W [out, in] as panels of `panel` output columns: panel p holds W[p * panel + j][i] at [i][j], so that one step of the
// inner product reads one contiguous vector. The last panel is as wide as the rest needs, rounded up to whole vectors;
// surplus columns are zero. With bfloat16 operands [i][j] is a word of two of them (bfloat16.h) and i counts words. bias has `columns` entries, the surplus ones zero too; without a bias all are.
struct Linear {
  int64_t in, out;
  int64_t columns;  // out, rounded up to whole vectors
  int64_t panel;    // the width that the packing instruction set reads
  bool bfloat16;
  float* data;
  float* bias;
};

}  // namespace desap
