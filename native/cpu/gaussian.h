// Attention of a matrix with itself (q = k), one head: softmax(q_i . q_j / sqrt(dh)) as a Gaussian kernel smoother.
//
// With s_ij = log2(e) q_i . q_j / sqrt(dh) and h_i = s_ii / 2 the exponent s_ij - h_i - h_j = -log2(e) |q_i - q_j|^2 / (2 sqrt(dh))
// is never positive, so no running maximum is needed, and it is symmetric:
//
//   E_ij = 2^(s_ij - h_i - h_j) = E_ji,   g_j = 2^(h_j - max h),   y_i = sum_j E_ij g_j v_j / sum_j E_ij g_j
//
// A block of E above the diagonal serves its rows, as E (g v), and its columns, as E^T (g v): half the scores and half the
// exponentials. h_i is common to a row and cancels; g_j <= 1 keeps every sum within the range of v.
//
// The range decides where this may be used. A row's sum is at least its own term, g_i >= 2^-max h; what falls below 2^-126
// counts as 0. With max h <= 84 all that a row of 65536 keys can lose is 2^16 2^-126 / 2^-84 = 2^-26 of its sum, less than
// float32 resolves. A head beyond that, or not finite, takes the ordinary way (attention.h).
// Numerics: otherwise as there. One thread does a head, block by block in one order.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr float gaussian_limit = 84;  // of h

constexpr int64_t gaussian_block = 96;  // rows: whole vectors and tiles; the last block has up to half as many again
constexpr int64_t gaussian_largest = gaussian_block * 3 / 2;
constexpr int64_t gaussian_ld = gaussian_largest + 16;
constexpr int weighed_rows = lanes == 16 ? 4 : 2;  // at once: exponentials are long chains; divides the panels' width

// h_i of one head; returns the largest, infinity where one is not a number. half: [N rounded up to vectors], the rest infinite.
inline float gaussian_halves(ConstMatrix q, float* half) {
  const float scale = 0.5f * score_scale(q.cols);
  float most = 0;
  for (int64_t i = 0; i < q.rows; i++) {
    prefetch_row(q, i + rows_ahead);
    half[i] = scale * dot(q.row(i), q.row(i), q.cols);
    if (!(half[i] <= most)) most = half[i] == half[i] ? half[i] : __builtin_inff();
  }
  for (int64_t i = q.rows; i % lanes != 0; i++) half[i] = __builtin_inff();
  return most;
}

// Where a block's weights go as left operands of bfloat16: E in words along its rows, E^T in words along its columns, rows gaussian_ld
// apart. Null: the weights stay float32.
struct WeightWords {
  float *rows, *columns;
};

// E of `rows` rows i.. and of columns j.., whole vectors: as `words`, or in place of their scores less h_j. Adds E g to the sums of
// the rows and, from column `above` on, E^T g to those of the columns.
template <class Arithmetic, int rows>
DESAP_INLINE void gaussian_weights(float* e, int64_t columns, const float* half, const float* g, int64_t i, int64_t j,
                                   int64_t above, float* sums, [[maybe_unused]] WeightWords words) {
  F h[rows], weight[rows], row_sums[rows] = {};
  DESAP_UNROLL for (int r = 0; r < rows; r++) h[r] = broadcast(half[i + r]), weight[r] = broadcast(g[i + r]);
  const auto weigh = [&](int64_t c, auto count) __attribute__((always_inline)) {
    constexpr int vectors = decltype(count)::value;
    F x[vectors * rows];
    DESAP_UNROLL for (int v = 0; v < vectors; v++) {
      DESAP_UNROLL for (int r = 0; r < rows; r++) x[v * rows + r] = load(e + r * gaussian_ld + c + v * lanes) - h[r];
    }
    exp2(x);
    DESAP_UNROLL for (int v = 0; v < vectors; v++) {
      const int64_t column = c + v * lanes;
      F column_sums = load(sums + j + column);
      DESAP_UNROLL for (int r = 0; r < rows; r++) {
        row_sums[r] = x[v * rows + r] * load(g + j + column) + row_sums[r];
        column_sums = x[v * rows + r] * weight[r] + column_sums;
      }
      if (column >= above) store(sums + j + column, column_sums);
    }
#if defined(DESAP_BF16)
    if (Arithmetic::elements == 2 && words.rows) {
      DESAP_UNROLL for (int r = 0; r < rows; r++) {
        store(words.rows + r * gaussian_ld + c / 2, bfloat16_row(x[r], vectors > 1 ? x[rows + r] : F{}));
      }
      DESAP_UNROLL for (int v = 0; v < vectors; v++) {
        store(words.columns + c + v * lanes, bfloat16_pairs(x[v * rows], rows > 1 ? x[v * rows + 1] : F{}));
      }
      return;
    }
#endif
    DESAP_UNROLL for (int v = 0; v < vectors; v++) {
      DESAP_UNROLL for (int r = 0; r < rows; r++) store(e + r * gaussian_ld + c + v * lanes, x[v * rows + r]);
    }
  };
  constexpr int vectors = Arithmetic::elements;  // at once: their numbers fill one of words
  int64_t c = 0;
  for (; c + vectors * lanes <= columns; c += vectors * lanes) weigh(c, std::integral_constant<int, vectors>());
  if (c < columns) weigh(c, std::integral_constant<int, 1>());
  DESAP_UNROLL for (int r = 0; r < rows; r++) sums[i + r] += sum(row_sums[r]);
}

// The same for a whole block. Of a block on the diagonal only what is right of each row's panel and in it is computed; what is
// left of it, E_ji, is copied, and all stays float32.
template <class Arithmetic>
inline void gaussian_block_weights(float* e, int64_t rows, int64_t columns, const float* half, const float* g, int64_t i, int64_t j,
                                   float* sums, WeightWords words) {
  constexpr int at_once = Arithmetic::elements == 2 ? 2 : weighed_rows;  // two rows fill a word of E^T
  const auto weigh = [&](int64_t r, auto count) {
    const int64_t skipped = i == j ? r / panel_width * panel_width : 0;
    const WeightWords of_row = i == j ? WeightWords{} : WeightWords{words.rows + r * gaussian_ld, words.columns + r / 2 * gaussian_ld};
    gaussian_weights<Arithmetic, decltype(count)::value>(e + r * gaussian_ld + skipped, columns - skipped, half, g, i + r, j + skipped,
                                                         i == j ? panel_width : 0, sums, of_row);
  };
  int64_t r = 0;
  for (; r + at_once <= rows; r += at_once) weigh(r, std::integral_constant<int, at_once>());
  for (; r < rows; r++) weigh(r, std::integral_constant<int, 1>());
  if (i != j) return;
  r = panel_width;
  for (; transposes && r + lanes <= rows; r += lanes) {
    transpose_squares<Float32>({e + r, r / panel_width * panel_width, lanes, gaussian_ld}, e + r * gaussian_ld, gaussian_ld, 1);
  }
  for (; r < rows; r++) {
    for (int64_t c = 0; c < r / panel_width * panel_width; c++) e[r * gaussian_ld + c] = e[c * gaussian_ld + r];
  }
}

// Floats of one thread's scratch.
template <class Arithmetic>
inline int64_t gaussian_size(int64_t rows, int64_t size) {
  const int64_t rounded = rows * words_of<Arithmetic>(size) + 2 * gaussian_largest * gaussian_ld;  // left operands
  return packed_size<Arithmetic>(size, rows) + packed_size<Arithmetic>(rows, size) + rows * round_up(size, lanes) +
         3 * round_up(rows, lanes) + gaussian_largest * gaussian_ld + (Arithmetic::elements > 1 ? rounded : 0);
}

// y [N, dh] of one head, or its words alone, where y_words has room for them. most: the largest of `half`.
template <class Arithmetic>
void gaussian_attention(ConstMatrix q, ConstMatrix v, const float* half, float most, float* scratch, Matrix y, Matrix y_words) {
  const int64_t all_rows = q.rows, size = q.cols, padded = round_up(all_rows, lanes), output_ld = round_up(size, lanes);
  const int64_t words = words_of<Arithmetic>(size);
  const auto take = [&](int64_t floats) {
    float* const memory = scratch;
    scratch += floats;
    return memory;
  };
  float* keys = take(packed_size<Arithmetic>(size, all_rows));
  float* values = take(packed_size<Arithmetic>(all_rows, size));
  float* output = take(all_rows * output_ld);
  float* g = take(padded);
  float* sums = take(padded);
  float* minus_half = take(padded);
  float* e = take(gaussian_largest * gaussian_ld);

  for (int64_t i = 0; i < padded; i += lanes) {
    const F h = load(half + i);
    store(g + i, exp2(h < __builtin_inff() ? h - most : -h));
    store(minus_half + i, -h);
    store(sums + i, F{});
  }
  std::memset(output, 0, static_cast<size_t>(all_rows * output_ld) * sizeof(float));
  const Blocks blocks(all_rows, gaussian_block);
  for (int64_t b = 0; b < blocks.count; b++) {
    const ConstMatrix block{q.row(blocks.begin(b)), blocks.size(b), size, q.ld};
    for (int64_t p = 0; p < blocks_of(block.rows, panel_width); p++) {
      pack_rows<Arithmetic>(block, p, keys + blocks.begin(b) * words, score_scale(size));
    }
  }
  pack_columns<Arithmetic>(v, 0, all_rows, values, g);

  // The left operands: the queries, a block of E and its transposed. float32 reads them where they are.
  ConstMatrix queries = q;
  float *left = e, *below = e;
#if defined(DESAP_BF16)
  if constexpr (Arithmetic::elements == 2) {
    const Matrix rounded{take(all_rows * words), all_rows, words, words};
    bfloat16_rows(q, rounded.data, words);
    queries = rounded;
    left = take(gaussian_largest * gaussian_ld), below = take(gaussian_largest * gaussian_ld);
  }
#endif

  // Rows i.. of the output += A (g v) of the rows j..; a_ld, a_step: of A.
  const auto add_values = [&](const float* a, int64_t a_ld, int64_t a_step, int64_t i, int64_t rows, int64_t j, int64_t count) {
    const int64_t depth = words_of<Arithmetic>(count), all = words_of<Arithmetic>(all_rows), first = j / Arithmetic::elements;
    for (int64_t d = 0; d < size; d += panel_width) {
      const int64_t columns = min(panel_width, output_ld - d);
      float* c = output + i * output_ld + d;
      multiply_panel<Arithmetic>({depth, a, a_ld, a_step, values + d * all + first * columns, c, output_ld, c, output_ld}, rows, columns);
    }
  };
  for (int64_t bi = 0; bi < blocks.count; bi++) {
    const int64_t i = blocks.begin(bi), rows = blocks.size(bi);
    for (int64_t bj = bi; bj < blocks.count; bj++) {
      const int64_t j = blocks.begin(bj), count = blocks.size(bj), whole = round_up(count, lanes);
      for (int64_t c = 0; c < whole; c += panel_width) {
        const int64_t columns = min(panel_width, whole - c), needed = i == j ? min(rows, c + columns) : rows;
        const float* panel = keys + (j + c) * words;
        multiply_panel<Arithmetic>({words, queries.row(i), queries.ld, 1, panel, minus_half + j + c, 0, e + c, gaussian_ld}, needed, columns);
      }
      gaussian_block_weights<Arithmetic>(e, rows, whole, half, g, i, j, sums, {left, below});
#if defined(DESAP_BF16)
      if constexpr (Arithmetic::elements == 2) {
        if (i == j) bfloat16_rows({e, rows, count, gaussian_ld}, left, gaussian_ld);
      }
#endif
      add_values(left, gaussian_ld, 1, i, rows, j, count);
      if (j > i) add_values(below, 1, gaussian_ld, j, count, i, rows);
    }
  }

  for (int64_t i = 0; i < all_rows; i++) {
    const float scale = 1.0f / sums[i];
    float* const gathered = output + i * output_ld;
    float* const row = y_words.data ? gathered : y.row(i);
    prefetch_row(y_words.data ? y_words : y, i + rows_ahead);
    for (int64_t d = 0; d < size; d += lanes) store_first(size - d, row + d, load(gathered + d) * scale);
#if defined(DESAP_BF16)
    if (y_words.data) bfloat16_rows({row, 1, size, size}, y_words.row(i), y_words.ld);
#endif
  }
}

}  // namespace DESAP_ISA
}  // namespace desap
