// A_s = mean over heads of softmax(Q K^T / sqrt(dh)): the class token's row of it, or the mean of its rows.
//
// With a class token it is one row per head, and the keys need not exist: a key's score is, per head,
//   q . (W_k x_j + b_k) = u . x_j + a term that all keys share and softmax drops,  u = W_k^T q,
// so W_k meets one row per head instead of every row of x (folded_saliency).
//
// Without, every row counts and there is no N x N buffer: a block of rows keeps its weights for all keys until its sums are
// known, and then gives each key its shares. Rows are added up in groups of fixed number, each by one thread in order, and the
// groups in order.
// Numerics: a key's N shares are summed per block of 24 rows first, so that the error of the float32 sum stays near 1e-6 at
// N = 16384. Heads are added in order.
#pragma once

namespace desap {
namespace DESAP_ISA {

// The mean over heads of the softmax of the columns of `scores` [N, H rounded up to vectors]; entries 1.. of it.
inline void column_softmax(Matrix scores, int64_t heads, float scale, float* saliency) {
  for (int64_t h = 0; h < heads; h += lanes) {
    F top = broadcast(-__builtin_inff()), total{};
    for (int64_t j = 0; j < scores.rows; j++) top = max(top, load(scores.row(j) + h) * scale);
    for (int64_t j = 0; j < scores.rows; j++) {
      const F weight = exp2(load(scores.row(j) + h) * scale - top);
      store(scores.row(j) + h, weight);
      total += weight;
    }
    const F factor = first(heads - h, 1.0f / (total * static_cast<float>(heads)));
    for (int64_t j = 1; j < scores.rows; j++) {
      const float share = sum(load(scores.row(j) + h) * factor);
      saliency[j - 1] = h == 0 ? share : saliency[j - 1] + share;
    }
  }
}

inline Matrix column_scores(Scratch& scratch, int64_t rows, int64_t heads) {
  const int64_t ld = round_up(heads, lanes);
  return {scratch.floats(rows * ld), rows, ld, ld};
}

Status class_token_saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, float* saliency) {
  const int64_t size = q.cols / heads;
  Scratch scratch(context.arena);
  const Matrix scores = column_scores(scratch, k.rows, heads);
  if (scratch.failed()) return out_of_memory("saliency");
  context.pool.parallel_for(k.rows, [&](int64_t j, int) {
    for (int64_t h = 0; h < scores.cols; h++) {
      scores.row(j)[h] = h < heads ? dot(q.data + h * size, k.row(j) + h * size, size) : 0;
    }
  });
  column_softmax(scores, heads, score_scale(size), saliency);
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
  column_softmax(scores, heads, score_scale(size), saliency);
  return {};
}

constexpr int64_t saliency_groups = 4;  // of a head's rows
constexpr int64_t saliency_rows = 24;  // of a block: 24 x 4096 weights are 400 KB
constexpr int64_t saliency_size = saliency_rows * score_ld;

Status mean_row_saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, float* saliency) {
  const int64_t all_rows = k.rows, ld = round_up(all_rows, lanes), key_blocks = blocks_of(all_rows, score_keys);
  const int64_t group_rows = round_up(blocks_of(all_rows, saliency_groups), saliency_rows), groups = blocks_of(all_rows, group_rows);
  const int64_t keys_size = packed_keys_size(k, heads), thread_size = key_blocks * saliency_size;
  const float scale = score_scale(q.cols / heads);
  Scratch scratch(context.arena);
  float* keys = scratch.floats(heads * keys_size);
  float* columns = scratch.floats(heads * groups * ld);  // of each key: the weight that it receives from a group's rows
  float* weights = scratch.floats(context.pool.threads() * thread_size);
  float* factors = scratch.floats(context.pool.threads() * key_blocks * saliency_rows);
  if (scratch.failed()) return out_of_memory("saliency");

  pack_keys(context, k, heads, keys);
  context.pool.parallel_for(heads * groups, [&](int64_t task, int thread) {
    const int64_t head = task / groups, begin = task % groups * group_rows, end = min(begin + group_rows, all_rows);
    const ConstMatrix queries = head_columns(q, heads, head);
    float* factor = factors + thread * key_blocks * saliency_rows;  // of a block's weights, for each row
    float* total = columns + task * ld;
    for (int64_t j = 0; j < ld; j += lanes) store(total + j, F{});
    for (int64_t i = begin; i < end; i += saliency_rows) {
      const int64_t rows = min(saliency_rows, end - i);
      RunningSoftmax softmax[saliency_rows];
      for (int64_t b = 0; b < key_blocks; b++) {
        const int64_t j = b * score_keys, count = min(score_keys, all_rows - j);
        float* scores = weights + thread * thread_size + b * saliency_size;
        score_block(queries, i, rows, keys + head * keys_size, j, count, scores);
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

  const float mean = 1.0f / (static_cast<float>(heads) * static_cast<float>(all_rows));
  for (int64_t j = 0; j < all_rows; j += lanes) {
    F total{};
    for (int64_t part = 0; part < heads * groups; part++) total += load(columns + part * ld + j);
    store_first(all_rows - j, saliency + j, total * mean);
  }
  return {};
}

Status saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, bool class_token, float* saliency) {
  return class_token ? class_token_saliency(context, q, k, heads, saliency)
                     : mean_row_saliency(context, q, k, heads, saliency);
}

}  // namespace DESAP_ISA
}  // namespace desap
