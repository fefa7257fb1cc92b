// Per head y_i = sum_j exp(s_ij - max_i) v_j / sum_j exp(s_ij - max_i),  s_ij = q_i . k_j / sqrt(dh)
//
// One pass over the keys per block of rows (the shape of flash attention): a block of scores is made, turned into
// weights against the largest score so far, and multiplied with its values; when the largest score grows, what was
// summed so far is scaled down. Scratch is one block of scores and one of outputs per thread.
// Numerics: float32 products in ascending order; weights below 2^-126 of the largest are 0.
#pragma once

namespace desap {
namespace DESAP_ISA {

Status attention(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Matrix y) {
  const int64_t tokens = q.rows, size = q.cols / heads, row_blocks = blocks_of(tokens, score_rows);
  const int64_t panels = blocks_of(size, panel_width), output_ld = round_up(size, lanes);
  const int64_t keys_size = packed_keys_size(k, heads), values_size = packed_size(tokens, size);
  const int64_t thread_size = score_size + score_rows * output_ld;
  const float scale = score_scale(size);

  Scratch scratch(context.arena);
  float* keys = scratch.floats(heads * keys_size);
  float* values = scratch.floats(heads * values_size);
  float* blocks = scratch.floats(context.pool.threads() * thread_size);
  if (scratch.failed()) return out_of_memory("attention");

  pack_keys(context, k, heads, keys);
  context.pool.parallel_for(heads * panels, [&](int64_t task, int) {
    pack_columns(head_columns(v, heads, task / panels), task % panels, values + task / panels * values_size);
  });

  context.pool.parallel_for(heads * row_blocks, [&](int64_t task, int thread) {
    const int64_t head = task / row_blocks, i = task % row_blocks * score_rows, rows = min(score_rows, tokens - i);
    const ConstMatrix queries = head_columns(q, heads, head);
    float* scores = blocks + thread * thread_size;
    float* output = scores + score_size;
    RunningSoftmax softmax[score_rows];
    std::memset(output, 0, static_cast<size_t>(rows * output_ld) * sizeof(float));

    for (int64_t j = 0; j < tokens; j += score_keys) {
      const int64_t count = min(score_keys, tokens - j);
      score_block(queries, i, rows, keys + head * keys_size, j, count, scores);
      for (int64_t r = 0; r < rows; r++) {
        const float factor = advance(softmax[r], scale, scores + r * score_ld, count);
        weigh(softmax[r], scale, scores + r * score_ld, count);
        if (factor == 1) continue;
        float* row = output + r * output_ld;
        for (int64_t d = 0; d < output_ld; d += lanes) store(row + d, load(row + d) * factor);
      }
      for (int64_t d = 0; d < size; d += panel_width) {
        const int64_t columns = min(panel_width, output_ld - d);
        const float* panel = values + head * values_size + d * tokens + j * columns;
        multiply_panel({count, scores, score_ld, panel, output + d, output_ld, output + d, output_ld}, rows, columns);
      }
    }

    for (int64_t r = 0; r < rows; r++) {
      float* out = y.row(i + r) + head * size;
      for (int64_t d = 0; d < size; d += lanes) {
        store_first(size - d, out + d, load(output + r * output_ld + d) * (1.0f / softmax[r].sum));
      }
    }
  });
  return {};
}

}  // namespace DESAP_ISA
}  // namespace desap
