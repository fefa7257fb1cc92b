// A_s = mean over heads of softmax(Q K^T / sqrt(dh)): the class token's row of it, or the mean of its rows.
//
// With a class token it is one row per head: plain dot products, one softmax. Without, two passes over the scores and no
// N x N buffer: first every row's largest score and sum of weights, then per block of keys the sum over all rows.
// Numerics: a column's N weights are summed per block of 48 rows first, then over the blocks, so that the error of the
// float32 sum stays near 1e-6 at N = 16384. Heads are added in order.
#pragma once

namespace desap {
namespace DESAP_ISA {

// saliency[j] = factor sum_h parts[h][begin + j]; the parts are `ld` apart.
inline void sum_heads(const float* parts, int64_t heads, int64_t ld, int64_t begin, int64_t tokens, float factor, float* saliency) {
  for (int64_t j = begin; j < tokens; j += lanes) {
    F total{};
    for (int64_t h = 0; h < heads; h++) total += load_first(tokens - j, parts + h * ld + j);
    store_first(tokens - j, saliency + j - begin, total * factor);
  }
}

Status class_token_saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, float* saliency) {
  const int64_t tokens = k.rows, size = q.cols / heads;
  const float scale = score_scale(size);
  Scratch scratch(context.arena);
  const int64_t ld = round_up(tokens, lanes);
  float* rows = scratch.floats(heads * ld);
  if (scratch.failed()) return out_of_memory("saliency");

  context.pool.parallel_for(heads, [&](int64_t h, int) {
    float* row = rows + h * ld;
    for (int64_t j = 0; j < tokens; j++) row[j] = dot(q.data + h * size, k.row(j) + h * size, size);
    for (int64_t j = tokens; j < ld; j++) row[j] = -__builtin_inff();
    RunningSoftmax softmax;
    advance(softmax, scale, row, tokens);
    weigh(softmax, scale, row, tokens);
    for (int64_t j = 0; j < tokens; j += lanes) store(row + j, load(row + j) * (1.0f / softmax.sum));
  });
  sum_heads(rows, heads, ld, 1, tokens, 1.0f / static_cast<float>(heads), saliency);
  return {};
}

Status mean_row_saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, float* saliency) {
  const int64_t tokens = k.rows, row_blocks = blocks_of(tokens, score_rows), key_blocks = blocks_of(tokens, score_keys);
  const int64_t keys_size = packed_keys_size(k, heads), ld = round_up(tokens, lanes);
  const float scale = score_scale(q.cols / heads);
  Scratch scratch(context.arena);
  float* keys = scratch.floats(heads * keys_size);
  float* shifts = scratch.floats(heads * tokens);    // of each row: its largest scaled score
  float* inverses = scratch.floats(heads * tokens);  // and 1 / its sum of weights
  float* columns = scratch.floats(heads * ld);       // of each key: the weight it receives from all rows
  float* blocks = scratch.floats(context.pool.threads() * score_size);
  if (scratch.failed()) return out_of_memory("saliency");

  pack_keys(context, k, heads, keys);
  context.pool.parallel_for(heads * row_blocks, [&](int64_t task, int thread) {
    const int64_t head = task / row_blocks, i = task % row_blocks * score_rows, rows = min(score_rows, tokens - i);
    const ConstMatrix queries = head_columns(q, heads, head);
    float* scores = blocks + thread * score_size;
    RunningSoftmax softmax[score_rows];
    for (int64_t j = 0; j < tokens; j += score_keys) {
      const int64_t count = min(score_keys, tokens - j);
      score_block(queries, i, rows, keys + head * keys_size, j, count, scores);
      for (int64_t r = 0; r < rows; r++) {
        advance(softmax[r], scale, scores + r * score_ld, count);
        weigh(softmax[r], scale, scores + r * score_ld, count);
      }
    }
    for (int64_t r = 0; r < rows; r++) {
      shifts[head * tokens + i + r] = softmax[r].shift;
      inverses[head * tokens + i + r] = 1.0f / softmax[r].sum;
    }
  });

  context.pool.parallel_for(heads * key_blocks, [&](int64_t task, int thread) {
    const int64_t head = task / key_blocks, j = task % key_blocks * score_keys, count = min(score_keys, tokens - j);
    const ConstMatrix queries = head_columns(q, heads, head);
    float* scores = blocks + thread * score_size;
    float* total = columns + head * ld + j;
    for (int64_t c = 0; c < count; c += lanes) store(total + c, F{});
    for (int64_t i = 0; i < tokens; i += score_rows) {
      const int64_t rows = min(score_rows, tokens - i);
      const float* shift = shifts + head * tokens + i;
      const float* inverse = inverses + head * tokens + i;
      score_block(queries, i, rows, keys + head * keys_size, j, count, scores);
      for (int64_t c = 0; c < count; c += lanes) {
        F part{};
        for (int64_t r = 0; r < rows; r++) part += exp2(load(scores + r * score_ld + c) * scale - shift[r]) * inverse[r];
        store(total + c, load(total + c) + part);
      }
    }
  });
  sum_heads(columns, heads, ld, 0, tokens, 1.0f / (static_cast<float>(heads) * static_cast<float>(tokens)), saliency);
  return {};
}

Status saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, bool class_token, float* saliency) {
  return class_token ? class_token_saliency(context, q, k, heads, saliency)
                     : mean_row_saliency(context, q, k, heads, saliency);
}

}  // namespace DESAP_ISA
}  // namespace desap
