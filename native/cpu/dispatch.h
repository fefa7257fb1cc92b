// One table of kernels per instruction set, and the context that chose one of them.
#pragma once

#include "../fold.h"
#include "../kernels.h"
#include "arena.h"
#include "context.h"
#include "thread_pool.h"

namespace desap {

// Rows of cosines that are computed at once.
constexpr int64_t most_rows_at_once = 32;

// The kernels that use vectors. top_k, select and pool do not, and the read-outs are sequences of others: they need no entry.
struct Kernels {
  decltype(&desap::convert_half) convert_half;
  decltype(&desap::convert_to_half) convert_to_half;
  decltype(&desap::layer_norm) layer_norm;
  decltype(&desap::rms_norm) rms_norm;
  // words: the rows of y as linear_words reads them; no data where they are not wanted.
  Status (*normalize)(Context&, ConstMatrix x, float epsilon, Matrix y, Matrix words, float* inverse_norms);
  Status (*linear_pack)(Context&, ConstMatrix weight, const float* bias, bool bfloat16, Linear**);
  decltype(&desap::linear) linear;
  // linear with bfloat16 operands whose x is rounded already, in rows of in / 2 words (bfloat16.h); null where there are none.
  Status (*linear_words)(Context&, ConstMatrix words, const Linear&, Matrix y);
  // words: the rows of y as linear_words reads them, and nothing that counts in y; no data where y is wanted. D / H is even then.
  Status (*attention)(Context&, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Matrix y, Matrix words);
  decltype(&desap::saliency) saliency;
  decltype(&desap::self_attention) self_attention;
  Status (*folded_saliency)(Context&, ConstMatrix x, const float* q, const float* k_weight, int64_t heads, float* saliency);
  // Parts of siglip_read_out (pooling_head.h, saliency.h).
  Status (*query_saliency)(Context&, const float* q, ConstMatrix k, int64_t heads, Rotary, int64_t first_row, Matrix scores,
                           float* saliency);
  Status (*weighted_row)(Context&, ConstMatrix shares, ConstMatrix v, int64_t heads, float* y);
  Status (*gelu)(Context&, Matrix x);
  decltype(&desap::unit_rows) unit_rows;
  Status (*inverse_norms)(Context&, ConstMatrix x, float* y);
  Status (*folded_read_out)(Context&, ConstMatrix x, const RotatedReadOut&, float epsilon, Matrix y);
  decltype(&desap::align) align;
  // norms: the features' inverse norms where the caller has them, else null.
  Status (*merge)(Context&, ConstMatrix features, const float* norms, const int32_t* kept, int64_t k, Matrix tokens,
                  int32_t* assignment, int32_t* counts);
  // Parts of farthest_points and dpp (cosine_rows.h, dpp.h); `count` is at most most_rows_at_once.
  Status (*cosine_rows)(Context&, ConstMatrix x, const float* norms, const int32_t* of, int64_t count, Matrix y);
  Status (*dpp_rows)(Context&, ConstMatrix x, const float* norms, const float* relevance, float blend, ConstMatrix factors,
                     const int32_t* of, int64_t count, Matrix y);
  void (*dpp_factor)(Context&, const float* row, ConstMatrix recent, int64_t j, float root, float* factor, float* gains);
  // Steps of products alone (gemm.h), to time them; those of bfloat16 operands are null where there are none.
  float (*multiply_float32)(int64_t steps);
  float (*multiply_bfloat16)(int64_t steps);
};

extern const Kernels scalar_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels, avx512bf16_kernels;
#elif defined(__aarch64__)
extern const Kernels neon_kernels, neonbf16_kernels;
#endif

struct Context {
  Context(const Kernels& table, int threads, bool bfloat16_) : kernels(&table), bfloat16(bfloat16_), pool(threads) {}

  const Kernels* kernels;
  bool bfloat16;  // of linear and attention
  ThreadPool pool;
  Arena arena;
};

// The lowest row that threads reported, whatever the order in which they did.
class FirstRow {
 public:
  void report(int64_t row);
  Status status(const char* input) const;  // not_finite where a row was reported

 private:
  std::atomic<int64_t> row_{INT64_MAX};
};

// linear_pack with float32 operands, whatever the context says.
Status linear_pack_float32(Context&, ConstMatrix weight, const float* bias, Linear** linear);

// The row of x of the largest sum of distances, of which sum_j (1 - u_i . u_j) = P - u_i . sum_j u_j; equal sums: the lower index. norms:
// the inverse norms of x.
Status most_distant(Context&, ConstMatrix x, const float* norms, int32_t* picked);

// farthest_points with the inverse norms of x.
Status farthest_points(Context&, ConstMatrix x, const float* norms, const int32_t* seeds, int64_t seed_count, int64_t count,
                       int32_t* picked);

// Distance between the rows of an intermediate with this many columns. Rows are whole cache lines, and never a multiple
// of 1 KB apart: the rows that a matrix product reads side by side would fall into the same few sets of the L1 cache.
int64_t padded_ld(int64_t columns);

}  // namespace desap
