// A_s = mean over heads of softmax(rot(Q) rot(K)^T / sqrt(dh)): the class token's row of it, or the mean of its rows. Keys are
// rotated while they are packed, queries block by block.
//
// With a class token it is one row per head, and the keys need not exist: a key's score is, per head,
//   q . (W_k x_j + b_k) = u . x_j + a term that all keys share and softmax drops,  u = W_k^T q,
// so W_k meets one row per head instead of every row of x (folded_saliency).
//
// Without, every row counts (self_attention.h).
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

Status saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, bool class_token, Rotary rotary, float* saliency) {
  if (!class_token) return DESAP_ISA::self_attention(context, q, k, {}, heads, rotary, {}, saliency);
  Scratch scratch(context.arena);
  const Matrix scores = column_scores(scratch, k.rows, heads);
  if (scratch.failed()) return out_of_memory("saliency");
  return query_saliency(context, q.data, k, heads, rotary, 1, scores, saliency);
}

}  // namespace DESAP_ISA
}  // namespace desap
