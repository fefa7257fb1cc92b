// Per head y_i = sum_j exp(s_ij - max_i) v_j / sum_j exp(s_ij - max_i),  s_ij = q_i . k_j / sqrt(dh)
//
// A matrix with itself (q = k, the paper's form) goes through gaussian.h, head by head, where the range allows it. The
// ordinary way is one pass over the keys per block of rows (the shape of flash attention): a block of scores is made,
// turned into weights against the largest score so far, and multiplied with its values; when the largest score grows,
// what was summed so far is scaled down. Scratch is one head's keys and values, and a block of scores and of outputs per thread.
// Numerics: float32 products in ascending order; weights below 2^-126 of the largest may be anything below that.
#pragma once

namespace desap {
namespace DESAP_ISA {

// One head. q, k, v, y: [N, dh].
Status ordinary_attention(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, Matrix y) {
  const int64_t all_rows = q.rows, size = q.cols, row_blocks = blocks_of(all_rows, score_rows);
  const int64_t thread_size = score_size + score_rows * round_up(size, lanes);
  const float scale = score_scale(size);

  Scratch scratch(context.arena);
  float* keys = scratch.floats(packed_size(size, all_rows));
  float* values = scratch.floats(packed_size(all_rows, size));
  float* blocks = scratch.floats(context.pool.threads() * thread_size);
  if (scratch.failed()) return out_of_memory("attention");

  pack_keys(context, k, keys);
  context.pool.parallel_for(row_blocks, [&](int64_t b, int) {
    pack_columns(v, b * score_rows, min((b + 1) * score_rows, all_rows), values);
  });

  context.pool.parallel_for(row_blocks, [&](int64_t task, int thread) {
    const int64_t i = task * score_rows, rows = min(score_rows, all_rows - i);
    float* scores = blocks + thread * thread_size;
    const Matrix output = gathered_rows(scores + score_size, rows, size);
    RunningSoftmax softmax[score_rows];

    for (int64_t j = 0; j < all_rows; j += score_keys) {
      const int64_t count = min(score_keys, all_rows - j);
      score_block(q, i, rows, keys, j, count, scores);
      for (int64_t r = 0; r < rows; r++) {
        rescale(output.row(r), output.ld, advance(softmax[r], scale, scores + r * score_ld, count));
        weigh(softmax[r], scale, scores + r * score_ld, count);
      }
      gather(scores, count, values, all_rows, j, output);
    }
    deliver(output, softmax, i, y);
  });
  return {};
}

template <class Arithmetic>
Status attention_as(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Matrix y, Matrix words) {
  const int64_t all_rows = q.rows, padded = round_up(all_rows, lanes);
  const bool itself = q.data == k.data && q.ld == k.ld;
  const auto part = [&](auto x, int64_t h) { return head_columns(x, heads, h); };
  Scratch scratch(context.arena);
  float* most = scratch.floats(heads);  // of h (gaussian.h)
  float* half = scratch.floats(itself ? heads * padded : 0);
  if (scratch.failed()) return out_of_memory("attention");

  for (int64_t h = 0; h < heads; h++) most[h] = __builtin_inff();
  if (itself) {
    const int64_t thread_size = round_up(gaussian_size<Arithmetic>(all_rows, q.cols / heads), 16);
    Scratch of_threads(context.arena);
    float* work = of_threads.floats(context.pool.threads() * thread_size);
    if (of_threads.failed()) return out_of_memory("attention");
    context.pool.parallel_for(heads, [&](int64_t h, int thread) {
      most[h] = gaussian_halves(part(q, h), half + h * padded);
      if (!(most[h] <= gaussian_limit)) return;
      gaussian_attention<Arithmetic>(part(q, h), part(v, h), half + h * padded, most[h], work + thread * thread_size, part(y, h),
                                     part(words, h));
    });
  }
  for (int64_t h = 0; h < heads; h++) {
    if (most[h] <= gaussian_limit) continue;
    DESAP_TRY(ordinary_attention(context, part(q, h), part(k, h), part(v, h), part(y, h)));
#if defined(DESAP_BF16)
    if (words.data) bfloat16_rows(part(y, h), part(words, h).data, words.ld);
#endif
  }
  return {};
}

// The ordinary way is float32 at every precision.
Status attention(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Matrix y, Matrix words) {
#if defined(DESAP_BF16)
  if (context.bfloat16) return attention_as<BFloat16>(context, q, k, v, heads, y, words);
#endif
  return attention_as<Float32>(context, q, k, v, heads, y, words);
}

}  // namespace DESAP_ISA
}  // namespace desap
