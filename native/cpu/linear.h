// y = x W^T + b
//
// The unit of work is one block of rows times one panel of W (see linear_layout.h): the block of x stays in the L2 cache while
// the panels pass by, and each tile's rows of x stay in L1 across one panel. A depth that would push the block out
// of L2 is cut into pieces; the partial sums then rest in y between the pieces. The bias is the initial value.
//
// W lies beyond L2 and is read once per block. With 16 lanes that would bind: blocks are as large as L2 and the threads' equal
// shares allow, and while a panel is multiplied the one that this thread takes next is fetched.
// Numerics: one float32 accumulator per output, added to in ascending order of the input.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int64_t smallest_rows = 48;  // a multiple of every tile's rows
constexpr int64_t largest_rows = fetches_ahead ? 192 : 48;
constexpr int64_t linear_depth = 1280;    // 48 x 1280 floats are 240 KB
constexpr int64_t tasks_per_thread = 8;  // or some would wait for the last task of others

// Rows of a block of x, which may take three quarters of L2: the panels only pass through.
inline int64_t linear_rows(int64_t rows, int64_t depth, int64_t panels, int64_t threads) {
  const int64_t row = min(depth, linear_depth) * static_cast<int64_t>(sizeof(float)), room = second_level_cache() / 4 * 3;
  int64_t block = largest_rows;
  while (block > smallest_rows && (block * row > room || blocks_of(rows, block) * panels < tasks_per_thread * threads)) block /= 2;
  return block;
}

template <class Arithmetic>
Status linear_pack_as(Context& context, ConstMatrix weight, const float* bias, Linear** linear) {
  const int64_t columns = round_up(weight.rows, lanes), size = packed_size<Arithmetic>(weight.cols, weight.rows);
  Linear* packed = new (std::nothrow) Linear;
  float* data = packed ? static_cast<float*>(allocate_memory(static_cast<size_t>(size + columns) * sizeof(float))) : nullptr;
  if (!data) {
    delete packed;
    return out_of_memory("weight");
  }
  *packed = {weight.cols, weight.rows, columns, panel_width, Arithmetic::elements == 2, data, data + size};
  context.pool.parallel_for(blocks_of(weight.rows, panel_width), [&](int64_t p, int) { pack_rows<Arithmetic>(weight, p, data); });
  for (int64_t j = 0; j < columns; j++) packed->bias[j] = bias && j < weight.rows ? bias[j] : 0;
  *linear = packed;
  return {};
}

// x: words.
template <class Arithmetic>
void multiply_linear(Context& context, ConstMatrix x, const Linear& weight, Matrix y) {
  const int64_t panels = blocks_of(weight.out, panel_width), words = words_of<Arithmetic>(weight.in);
  const int64_t threads = context.pool.threads();
  const Blocks blocks(x.rows, linear_rows(x.rows, words, panels, threads));
  context.pool.parallel_for(blocks.count * panels, [&](int64_t task, int) {
    const int64_t b = task / panels, i = blocks.begin(b), j = task % panels * panel_width;
    const int64_t columns = min(panel_width, weight.out - j), width = round_up(columns, lanes);
    const float* panel = weight.data + j * words;
    const float* next = weight.data + (task + threads) % panels * panel_width * words;
    float* c = y.row(i) + j;
    for (int64_t k = 0; k < words; k += linear_depth) {
      const float* init = k == 0 ? weight.bias + j : c;
      const int64_t depth = min(linear_depth, words - k), init_ld = k == 0 ? 0 : y.ld;
      multiply_panel<Arithmetic>({depth, x.row(i) + k, x.ld, 1, panel + k * width, init, init_ld, c, y.ld, next + k * panel_width}, blocks.size(b), columns);
    }
  });
}

Status linear_pack(Context& context, ConstMatrix weight, const float* bias, [[maybe_unused]] bool bfloat16, Linear** linear) {
#if defined(DESAP_BF16)
  if (bfloat16) return linear_pack_as<BFloat16>(context, weight, bias, linear);
#endif
  return linear_pack_as<Float32>(context, weight, bias, linear);
}

Status linear(Context& context, ConstMatrix x, const Linear& weight, Matrix y) {
  if (weight.panel != panel_width) return {Code::internal, "weight", -1};  // packed for another instruction set
#if defined(DESAP_BF16)
  if (weight.bfloat16) {
    Scratch scratch(context.arena);
    const int64_t words = words_of<BFloat16>(x.cols), ld = padded_ld(words);
    const Matrix rounded{scratch.floats(x.rows * ld), x.rows, words, ld};
    if (scratch.failed()) return out_of_memory("linear");
    context.pool.parallel_for(row_tasks(x.rows), [&](int64_t task, int) {
      const int64_t i = task * rows_per_task, rows = min(rows_per_task, x.rows - i);
      bfloat16_rows({x.row(i), rows, x.cols, x.ld}, rounded.row(i), ld);
    });
    multiply_linear<BFloat16>(context, rounded, weight, y);
    return {};
  }
#endif
  multiply_linear<Float32>(context, x, weight, y);
  return {};
}

#if defined(DESAP_BF16)
Status linear_words(Context& context, ConstMatrix words, const Linear& weight, Matrix y) {
  multiply_linear<BFloat16>(context, words, weight, y);
  return {};
}
#endif

}  // namespace DESAP_ISA
}  // namespace desap
