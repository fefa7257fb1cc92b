// y = x W^T + b
//
// The unit of work is one block of rows times one panel of W (see linear_layout.h): the block of x stays in the L2 cache while
// the panels pass by, and each tile's 6 rows of x stay in L1 across one panel. A depth that would push the block out
// of L2 is cut into pieces; the partial sums then rest in y between the pieces. The bias is the initial value.
// Numerics: one float32 accumulator per output, added to in ascending order of the input.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int64_t linear_rows = 48;     // a multiple of every tile's rows
constexpr int64_t linear_depth = 1280;  // 48 x 1280 floats are 240 KB

Status linear_pack(Context& context, ConstMatrix weight, const float* bias, Linear** linear) {
  const int64_t columns = round_up(weight.rows, lanes);
  const size_t floats = static_cast<size_t>(columns * weight.cols + columns);
  Linear* packed = new (std::nothrow) Linear;
  float* data = packed ? static_cast<float*>(allocate_memory(floats * sizeof(float))) : nullptr;
  if (!data) {
    delete packed;
    return out_of_memory("weight");
  }
  *packed = {weight.cols, weight.rows, columns, panel_width, data, data + columns * weight.cols};
  context.pool.parallel_for(blocks_of(weight.rows, panel_width), [&](int64_t p, int) { pack_rows(weight, p, data); });
  for (int64_t j = 0; j < columns; j++) packed->bias[j] = bias && j < weight.rows ? bias[j] : 0;
  *linear = packed;
  return {};
}

Status linear(Context& context, ConstMatrix x, const Linear& weight, Matrix y) {
  if (weight.panel != panel_width) return {Code::internal, "weight", -1};  // packed for another instruction set
  const int64_t panels = blocks_of(weight.out, panel_width);
  const Blocks blocks(x.rows, linear_rows);
  context.pool.parallel_for(blocks.count * panels, [&](int64_t task, int) {
    const int64_t b = task / panels, i = blocks.begin(b), j = task % panels * panel_width;
    const int64_t columns = min(panel_width, weight.out - j), width = round_up(columns, lanes);
    const float* panel = weight.data + j * weight.in;
    float* c = y.row(i) + j;
    for (int64_t k = 0; k < weight.in; k += linear_depth) {
      const float* init = k == 0 ? weight.bias + j : c;
      multiply_panel({min(linear_depth, weight.in - k), x.row(i) + k, x.ld, 1, panel + k * width, init, k == 0 ? 0 : y.ld, c, y.ld},
                     blocks.size(b), columns);
    }
  });
  return {};
}

}  // namespace DESAP_ISA
}  // namespace desap
