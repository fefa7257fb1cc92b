// A_s = mean over heads of softmax(rot(Q) rot(K)^T / sqrt(dh)): the class token's row of it, or the mean of its rows. Keys are
// rotated while they are packed, queries block by block.
//
// With a class token it is one row per head, and the keys need not exist: a key's score is, per head,
//   q . (W_k x_j + b_k) = u . x_j + a term that all keys share and softmax drops,  u = W_k^T q,
// so W_k meets one row per head instead of every row of x (folded_saliency).
//
// Without, every row counts and there is no N x N buffer: a block of rows keeps its weights for all keys until its sums are
// known, and then gives each key its shares. Rows are added up in groups of fixed number, each by one thread in order, and the
// groups in order. Keys are packed for no more heads at a time than keep the threads busy.
// Numerics: a key's N shares are summed per block of 24 rows first, so that the error of the float32 sum stays near 1e-6 at
// N = 16384. Heads are added in order.
#pragma once

namespace desap {
namespace DESAP_ISA {

// The softmax of the columns of `scores` [N, H rounded up to vectors], in their place and divided by the number of heads, and its mean
// over the heads from row `first_row` on.
inline void column_softmax(Matrix scores, int64_t heads, float scale, int64_t first_row, float* saliency) {
  for (int64_t h = 0; h < heads; h += lanes) {
    F top = broadcast(-__builtin_inff()), total{};
    for (int64_t j = 0; j < scores.rows; j++) top = max(top, load(scores.row(j) + h) * scale);
    for (int64_t j = 0; j < scores.rows; j++) {
      const F weight = exp2(load(scores.row(j) + h) * scale - top);
      store(scores.row(j) + h, weight);
      total += weight;
    }
    const F factor = first(heads - h, 1.0f / (total * static_cast<float>(heads)));
    for (int64_t j = first_row; j < scores.rows; j++) {
      const F shares = load(scores.row(j) + h) * factor;
      store(scores.row(j) + h, shares);
      float& mean = saliency[j - first_row];
      mean = h == 0 ? sum(shares) : mean + sum(shares);
    }
  }
}

inline Matrix column_scores(Scratch& scratch, int64_t rows, int64_t heads) {
  const int64_t ld = round_up(heads, lanes);
  return {scratch.floats(rows * ld), rows, ld, ld};
}

// Of one query, the row that stands at the first key's place. q: [D]; k: [N, D]; scores: as above, left as column_softmax does.
Status query_saliency(Context& context, const float* q, ConstMatrix k, int64_t heads, Rotary rotary, int64_t first_row, Matrix scores,
                      float* saliency) {
  const int64_t size = k.cols / heads;
  Scratch scratch(context.arena);
  float* query = scratch.floats(rotary.cos ? k.cols : 0);
  float* keys = scratch.floats(rotary.cos ? context.pool.threads() * size : 0);
  if (scratch.failed()) return out_of_memory("saliency");
  for (int64_t h = 0; rotary.cos && h < heads; h++) rotate(q + h * size, rotary.cos, rotary.sin, size, query + h * size);
  context.pool.parallel_for(k.rows, [&](int64_t j, int thread) {
    for (int64_t h = 0; h < heads; h++) {
      const ConstMatrix key = rotated(head_columns(k, heads, h), j, 1, rotary, keys + thread * size);
      scores.row(j)[h] = dot((rotary.cos ? query : q) + h * size, key.data, size);
    }
    for (int64_t h = heads; h < scores.cols; h++) scores.row(j)[h] = 0;
  });
  column_softmax(scores, heads, score_scale(size), first_row, saliency);
  return {};
}

// The same from the rows x that the keys would be made of. q: the class token's row [D]; k_weight: [D, D], not packed.
Status folded_saliency(Context& context, ConstMatrix x, const float* q, const float* k_weight, int64_t heads, float* saliency) {
  const int64_t width = x.cols, size = width / heads, panels = blocks_of(heads, panel_width);
  const Blocks blocks(x.rows, score_rows);
  static const float zeros[panel_width] = {};
  Scratch scratch(context.arena);
  const Matrix u{scratch.floats(heads * width), heads, width, width};
  float* packed = scratch.floats(packed_size(width, heads));
  const Matrix scores = column_scores(scratch, x.rows, heads);
  if (scratch.failed()) return out_of_memory("saliency");

  context.pool.parallel_for(heads, [&](int64_t h, int) {
    const ConstMatrix weight{k_weight + h * size * width, size, width, width};
    float* row = u.row(h);
    std::memset(row, 0, static_cast<size_t>(width) * sizeof(float));
    for (int64_t d = 0; d < size; d += 4) {  // four rows of the weight at a time, each read once
      float factor[4];
      const float* rows[4];
      for (int64_t r = 0; r < 4; r++) {
        factor[r] = d + r < size ? q[h * size + d + r] : 0;
        rows[r] = weight.row(d + r < size ? d + r : d);
      }
      for (int64_t i = 0; i < width; i += lanes) {
        F total = load_first(width - i, row + i);
        DESAP_UNROLL for (int r = 0; r < 4; r++) total = load_first(width - i, rows[r] + i) * factor[r] + total;
        store_first(width - i, row + i, total);
      }
    }
  });
  for (int64_t p = 0; p < panels; p++) pack_rows(u, p, packed);
  context.pool.parallel_for(blocks.count, [&](int64_t b, int) {
    const int64_t i = blocks.begin(b);
    for (int64_t h = 0; h < heads; h += panel_width) {
      const int64_t columns = min(panel_width, scores.cols - h);
      float* c = scores.row(i) + h;
      multiply_panel({width, x.row(i), x.ld, 1, packed + h * width, zeros, 0, c, scores.ld}, blocks.size(b), columns);
    }
  });
  column_softmax(scores, heads, score_scale(size), 1, saliency);
  return {};
}

constexpr int64_t saliency_groups = 4;  // of a head's rows
constexpr int64_t saliency_rows = 24;  // of a block: 24 x 4096 weights are 400 KB
constexpr int64_t saliency_size = saliency_rows * score_ld;
constexpr int64_t turned_rows = panel_width > saliency_rows ? panel_width : saliency_rows;  // a panel of keys, or a block of queries

Status mean_row_saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, Rotary rotary, float* saliency) {
  const int64_t all_rows = k.rows, size = k.cols / heads, ld = round_up(all_rows, lanes), key_blocks = blocks_of(all_rows, score_keys);
  const int64_t group_rows = round_up(blocks_of(all_rows, saliency_groups), saliency_rows), groups = blocks_of(all_rows, group_rows);
  const int64_t keys_size = packed_size(size, all_rows), panels = blocks_of(all_rows, panel_width);
  const int64_t thread_size = key_blocks * saliency_size, threads = context.pool.threads();
  const int64_t heads_together = min(heads, blocks_of(2 * threads, groups));
  const float scale = score_scale(size);
  Scratch scratch(context.arena);
  float* keys = scratch.floats(heads_together * keys_size);
  float* columns = scratch.floats(heads * groups * ld);  // of each key: the weight that it receives from a group's rows
  float* weights = scratch.floats(threads * thread_size);
  float* factors = scratch.floats(threads * key_blocks * saliency_rows);
  float* turned = scratch.floats(rotary.cos ? threads * turned_rows * size : 0);
  if (scratch.failed()) return out_of_memory("saliency");

  for (int64_t first_head = 0; first_head < heads; first_head += heads_together) {
    const int64_t count_of_heads = min(heads_together, heads - first_head);
    context.pool.parallel_for(count_of_heads * panels, [&](int64_t task, int thread) {
      const int64_t head = task / panels, j = task % panels * panel_width, count = min(panel_width, all_rows - j);
      const ConstMatrix part = head_columns(k, heads, first_head + head);
      pack_rows(rotated(part, j, count, rotary, turned + thread * turned_rows * size), 0, keys + head * keys_size + j * size);
    });
    context.pool.parallel_for(count_of_heads * groups, [&](int64_t task, int thread) {
      const int64_t head = task / groups, begin = task % groups * group_rows, end = min(begin + group_rows, all_rows);
      const ConstMatrix queries = head_columns(q, heads, first_head + head);
      float* factor = factors + thread * key_blocks * saliency_rows;  // of a block's weights, for each row
      float* total = columns + (first_head * groups + task) * ld;
      for (int64_t j = 0; j < ld; j += lanes) store(total + j, F{});
      for (int64_t i = begin; i < end; i += saliency_rows) {
        const int64_t rows = min(saliency_rows, end - i);
        const ConstMatrix block = rotated(queries, i, rows, rotary, turned + thread * turned_rows * size);
        RunningSoftmax softmax[saliency_rows];
        for (int64_t b = 0; b < key_blocks; b++) {
          const int64_t j = b * score_keys, count = min(score_keys, all_rows - j);
          float* scores = weights + thread * thread_size + b * saliency_size;
          score_block(block, 0, rows, keys + head * keys_size, j, count, scores);
          for (int64_t r = 0; r < rows; r++) {
            advance(softmax[r], scale, scores + r * score_ld, count);
            weigh(softmax[r], scale, scores + r * score_ld, count);
            factor[b * saliency_rows + r] = softmax[r].shift;
          }
        }
        for (int64_t b = 0; b < key_blocks; b++) {
          const int64_t j = b * score_keys, count = min(score_keys, all_rows - j);
          const float* scores = weights + thread * thread_size + b * saliency_size;
          float* of_row = factor + b * saliency_rows;
          for (int64_t r = 0; r < rows; r++) of_row[r] = exp2(of_row[r] - softmax[r].shift) / softmax[r].sum;
          for (int64_t c = 0; c < count; c += lanes) {
            F part{};
            for (int64_t r = 0; r < rows; r++) part = load(scores + r * score_ld + c) * of_row[r] + part;
            store(total + j + c, load(total + j + c) + part);
          }
        }
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

Status saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, bool class_token, Rotary rotary, float* saliency) {
  if (!class_token) return mean_row_saliency(context, q, k, heads, rotary, saliency);
  Scratch scratch(context.arena);
  const Matrix scores = column_scores(scratch, k.rows, heads);
  if (scratch.failed()) return out_of_memory("saliency");
  return query_saliency(context, q.data, k, heads, rotary, 1, scores, saliency);
}

}  // namespace DESAP_ISA
}  // namespace desap
