// What attention, self_attention and saliency share: the scores q_i . k_j of one head, block by block, and what rows gather by them.
//
// Keys are packed per head as the B of gemm.h (depth dh, columns N): the same layout for any head size.
// A block is score_rows queries by score_keys keys; it is written to a scratch of the thread that stays in its L2 cache.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int64_t score_rows = 48;   // a multiple of every tile's rows
constexpr int64_t score_keys = 256;  // a multiple of every panel's width
constexpr int64_t score_ld = score_keys + 16;
constexpr int64_t score_size = score_rows * score_ld;

template <class T>
inline MatrixOf<T> head_columns(MatrixOf<T> x, int64_t heads, int64_t head) {
  const int64_t size = x.cols / heads;
  return {x.data + head * size, x.rows, size, x.ld};
}

inline void pack_keys(Context& context, ConstMatrix k, float* keys) {
  context.pool.parallel_for(blocks_of(k.rows, panel_width), [&](int64_t p, int) { pack_rows(k, p, keys); });
}

// scores[r][c] = q_(i + r) . k_(j + c), not scaled; `rows` queries of one head, `count` of its packed keys from j on,
// j a multiple of score_keys. Up to the next whole vector the row goes on with -infinity: no weight.
inline void score_block(ConstMatrix q, int64_t i, int64_t rows, const float* keys, int64_t j, int64_t count, float* scores) {
  static const float zeros[panel_width] = {};
  for (int64_t c = 0; c < count; c += panel_width) {
    const int64_t columns = min(panel_width, round_up(count - c, lanes));
    multiply_panel({q.cols, q.row(i), q.ld, 1, keys + (j + c) * q.cols, zeros, 0, scores + c, score_ld}, rows, columns);
  }
  for (int64_t c = count; c % lanes != 0; c++) {
    for (int64_t r = 0; r < rows; r++) scores[r * score_ld + c] = -__builtin_inff();
  }
}

// Scores times this are exponents of 2: softmax(s / sqrt(dh)) = 2^(scale s) / sum 2^(scale s).
inline float score_scale(int64_t head_size) { return log2_e / __builtin_sqrtf(static_cast<float>(head_size)); }

// A softmax over keys that arrive in blocks: the weights of all keys so far are 2^(scale s - shift) / sum, where shift is
// the largest scale s so far. The rounding of `shift` is common to all weights of a row and cancels.
struct RunningSoftmax {
  float shift = -__builtin_inff();
  float sum = 0;
};

// Makes `shift` cover one more block of a row's scores, whole vectors of them. Returns the factor for everything that
// was summed with the old shift.
DESAP_INLINE float advance(RunningSoftmax& softmax, float scale, const float* scores, int64_t count) {
  F top = broadcast(-__builtin_inff());
  for (int64_t c = 0; c < count; c += lanes) top = max(top, load(scores + c));
  const float highest = largest(top) * scale;
  if (!(highest > softmax.shift)) return 1;
  const float factor = exp2(softmax.shift - highest);
  softmax.shift = highest;
  softmax.sum *= factor;
  return factor;
}

// scores <- 2^(scale scores - shift), added to the row's sum.
DESAP_INLINE void weigh(RunningSoftmax& softmax, float scale, float* scores, int64_t count) {
  F total{};
  int64_t c = 0;
  for (; c + 2 * lanes <= count; c += 2 * lanes) {
    F weights[2] = {load(scores + c) * scale - softmax.shift, load(scores + c + lanes) * scale - softmax.shift};
    exp2(weights);
    store(scores + c, weights[0]);
    store(scores + c + lanes, weights[1]);
    total += weights[0] + weights[1];
  }
  for (; c < count; c += lanes) {
    const F weight = exp2(load(scores + c) * scale - softmax.shift);
    store(scores + c, weight);
    total += weight;
  }
  softmax.sum += sum(total);
}

// Rows of one head gather their values while the keys arrive: y_r = sum_j weight_rj v_j against the shift of the row's softmax, [rows, dh]
// up to whole vectors.
inline Matrix gathered_rows(float* room, int64_t rows, int64_t size) {
  const int64_t ld = round_up(size, lanes);
  std::memset(room, 0, static_cast<size_t>(rows * ld) * sizeof(float));
  return {room, rows, size, ld};
}

// A row whose shift has grown.
DESAP_INLINE void rescale(float* row, int64_t ld, float factor) {
  if (factor == 1) return;
  for (int64_t d = 0; d < ld; d += lanes) store(row + d, load(row + d) * factor);
}

// The weights of a block of `count` keys from j on. values: all `all_rows` of the head, packed by pack_columns.
inline void gather(const float* weights, int64_t count, const float* values, int64_t all_rows, int64_t j, Matrix y) {
  for (int64_t d = 0; d < y.cols; d += panel_width) {
    const int64_t columns = min(panel_width, y.ld - d);
    const float* panel = values + d * all_rows + j * columns;
    multiply_panel({count, weights, score_ld, 1, panel, y.data + d, y.ld, y.data + d, y.ld}, y.rows, columns);
  }
}

// Rows i .. of y.
inline void deliver(Matrix gathered, const RunningSoftmax* softmax, int64_t i, Matrix y) {
  for (int64_t r = 0; r < gathered.rows; r++) {
    float* out = y.row(i + r);
    for (int64_t d = 0; d < y.cols; d += lanes) {
      store_first(y.cols - d, out + d, load(gathered.row(r) + d) * (1.0f / softmax[r].sum));
    }
  }
}

}  // namespace DESAP_ISA
}  // namespace desap
