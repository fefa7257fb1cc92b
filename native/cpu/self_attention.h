// Per head y = softmax(rot(Q) rot(K)^T / sqrt(dh)) V, and saliency = the mean over heads and rows of the same softmax. Without v only the
// latter: saliency without a class token.
//
// There is no N x N buffer: a block of rows keeps its weights for all keys until its sums are known, and then gives each key its shares.
// Its values are gathered on the way, as in attention.h; it has more rows then, 48 for 24: keys and values together leave the L2 cache at
// N = 4096, and each is fetched for a whole block. Rows are added up in groups of fixed number, each by one thread in order, and the
// groups in order. Keys are rotated while they are packed, queries block by block; keys and values are packed for no more heads at a time
// than keep the threads busy.
// Numerics: a key's N shares are summed per block of 24 rows first, so that the error of the float32 sum stays near 1e-6 at N = 16384.
// Heads are added in order. With v and without, the saliency has the same bits. All of it is float32 at every precision, like the ordinary way of
// attention.h.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int64_t group_count = 4;  // of a head's rows
constexpr int64_t share_rows = 24;  // whose shares are added up by themselves

// q, k, v, y: [N, D]; v and y without data: they are not wanted.
Status self_attention(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Rotary rotary, Matrix y,
                      float* saliency) {
  const int64_t all_rows = k.rows, size = k.cols / heads, ld = round_up(all_rows, lanes), key_blocks = blocks_of(all_rows, score_keys);
  const int64_t block_rows = v.data ? score_rows : share_rows, block_size = block_rows * score_ld;
  const int64_t turned_rows = panel_width > block_rows ? panel_width : block_rows;  // a panel of keys, or a block of queries
  const int64_t group_rows = round_up(blocks_of(all_rows, group_count), share_rows), groups = blocks_of(all_rows, group_rows);
  const int64_t keys_size = packed_size(size, all_rows), panels = blocks_of(all_rows, panel_width);
  const int64_t values_size = v.data ? packed_size(all_rows, size) : 0, output_size = v.data ? block_rows * round_up(size, lanes) : 0;
  const int64_t thread_size = key_blocks * block_size + output_size, threads = context.pool.threads();
  const int64_t heads_together = min(heads, blocks_of(2 * threads, groups));
  const float scale = score_scale(size);
  Scratch scratch(context.arena);
  float* keys = scratch.floats(heads_together * keys_size);
  float* values = scratch.floats(heads_together * values_size);
  float* columns = scratch.floats(heads * groups * ld);  // of each key: the weight that it receives from a group's rows
  float* weights = scratch.floats(threads * thread_size);
  float* factors = scratch.floats(threads * key_blocks * block_rows);
  float* turned = scratch.floats(rotary.cos ? threads * turned_rows * size : 0);
  if (scratch.failed()) return out_of_memory(v.data ? "attention" : "saliency");

  for (int64_t first_head = 0; first_head < heads; first_head += heads_together) {
    const int64_t count_of_heads = min(heads_together, heads - first_head);
    context.pool.parallel_for(count_of_heads * panels, [&](int64_t task, int thread) {
      const int64_t head = task / panels, j = task % panels * panel_width, count = min(panel_width, all_rows - j);
      const ConstMatrix part = head_columns(k, heads, first_head + head);
      pack_rows(rotated(part, j, count, rotary, turned + thread * turned_rows * size), 0, keys + head * keys_size + j * size);
      if (v.data) pack_columns(head_columns(v, heads, first_head + head), j, j + count, values + head * values_size);
    });
    context.pool.parallel_for(count_of_heads * groups, [&](int64_t task, int thread) {
      const int64_t head = task / groups, begin = task % groups * group_rows, end = min(begin + group_rows, all_rows);
      const ConstMatrix queries = head_columns(q, heads, first_head + head);
      float* factor = factors + thread * key_blocks * block_rows;  // of a block's weights, for each row
      float* total = columns + (first_head * groups + task) * ld;
      float* own = weights + thread * thread_size;
      for (int64_t j = 0; j < ld; j += lanes) store(total + j, F{});
      for (int64_t i = begin; i < end; i += block_rows) {
        const int64_t rows = min(block_rows, end - i);
        const ConstMatrix block = rotated(queries, i, rows, rotary, turned + thread * turned_rows * size);
        const Matrix output = v.data ? gathered_rows(own + key_blocks * block_size, rows, size) : Matrix{};
        RunningSoftmax softmax[score_rows];
        for (int64_t b = 0; b < key_blocks; b++) {
          const int64_t j = b * score_keys, count = min(score_keys, all_rows - j);
          float* scores = own + b * block_size;
          score_block(block, 0, rows, keys + head * keys_size, j, count, scores);
          for (int64_t r = 0; r < rows; r++) {
            const float moved = advance(softmax[r], scale, scores + r * score_ld, count);
            weigh(softmax[r], scale, scores + r * score_ld, count);
            factor[b * block_rows + r] = softmax[r].shift;
            if (v.data) rescale(output.row(r), output.ld, moved);
          }
          if (v.data) gather(scores, count, values + head * values_size, all_rows, j, output);
        }
        for (int64_t b = 0; b < key_blocks; b++) {
          const int64_t j = b * score_keys, count = min(score_keys, all_rows - j);
          const float* scores = own + b * block_size;
          float* of_row = factor + b * block_rows;
          for (int64_t r = 0; r < rows; r++) of_row[r] = exp2(of_row[r] - softmax[r].shift) / softmax[r].sum;
          for (int64_t first = 0; first < rows; first += share_rows) {
            const int64_t last = min(first + share_rows, rows);
            for (int64_t c = 0; c < count; c += lanes) {
              F part{};
              for (int64_t r = first; r < last; r++) part = load(scores + r * score_ld + c) * of_row[r] + part;
              store(total + j + c, load(total + j + c) + part);
            }
          }
        }
        if (v.data) deliver(output, softmax, i, head_columns(y, heads, first_head + head));
      }
    });
  }

  const float mean = 1.0f / (static_cast<float>(heads) * static_cast<float>(all_rows));
  for (int64_t j = 0; j < all_rows; j += lanes) {
    F total{};
    for (int64_t part = 0; part < heads * groups; part++) total += load(columns + part * ld + j);
    store_first(all_rows - j, saliency + j, total * mean);
  }
  return {};
}

}  // namespace DESAP_ISA
}  // namespace desap
