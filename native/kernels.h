// The list of kernels. One declaration each: equation, shapes, ties, errors. Knows nothing of Node.
//
// The same list, with the same names, stands in src/kernels (JavaScript reference, float64 arithmetic), native/cpu and
// native/cuda. Symbols as in the paper (arXiv 2604.11240): N rows of an image (its patches and, first, a class token
// where there is one), P patches, D width, H heads, dh = D / H, T text tokens, E width of the space that image and text
// share, K kept patches.
//
// All matrices are row-major float32; `ld` is the distance between two rows in elements (ld >= cols). Shapes are checked
// by the binding; kernels trust them. Results are identical for every thread count and every run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "status.h"

namespace desap {

template <class T>
struct MatrixOf {
  T* data;
  int64_t rows, cols, ld;
  T* row(int64_t i) const { return data + i * ld; }
  operator MatrixOf<const T>() const { return {data, rows, cols, ld}; }
};
using Matrix = MatrixOf<float>;
using ConstMatrix = MatrixOf<const float>;

// Arithmetic of the matrix products; everything else is float32. `fp32` keeps the float32 contract (1e-4 of the largest
// value, equal kept sets): float32 itself on the CPU, split binary16 operands on the tensor cores. The others round operands to
// 16 bits, sums are float32: binary16 (`fp16`, GPUs only) or bfloat16 (`bf16`, GPUs and processors that multiply it; of the
// CPU's kernels linear and attention).
enum class Precision : int { fp32, fp16, bf16 };

// Where kernels run. CPU: an instruction set and a thread pool. CUDA: a device and a stream.
// One thread at a time may run kernels on a context; Executor (binding/executor.h) sees to that.
struct Context;

// y = float(x), x holds IEEE 754 binary16 bits; size elements. Exact.
Status convert_half(Context&, const uint16_t* x, int64_t size, float* y);

// y = half(x), rounded to nearest even; overflow becomes infinity.
Status convert_to_half(Context&, const float* x, int64_t size, uint16_t* y);

// y_i = (x_i - mean(x_i)) / sqrt(var(x_i) + epsilon) * weight + bias, row by row; var is the biased variance.
// x, y: [N, D]; weight, bias: [D], or both null for 1 and 0. y may be x. not_finite("x", row) where a row's statistics are not finite.
Status layer_norm(Context&, ConstMatrix x, const float* weight, const float* bias, float epsilon, Matrix y);

// y_i = x_i / sqrt(mean(x_i^2) + epsilon) * weight, row by row: the norm without a mean (Qwen2.5-VL's towers).
// x, y: [N, D]; weight: [D], or null for 1. y may be x. not_finite("x", row) where a row's mean square is not finite.
Status rms_norm(Context&, ConstMatrix x, const float* weight, float epsilon, Matrix y);

// A weight matrix [out, in] with its optional bias [out], in the layout that `linear` reads fastest.
struct Linear;
Status linear_pack(Context&, ConstMatrix weight, const float* bias, Linear** linear);  // bias may be null
void linear_free(Linear*);

// y = x W^T + b. x: [N, in], y: [N, out]. y must not overlap x.
Status linear(Context&, ConstMatrix x, const Linear& weight, Matrix y);

// Decoupled attention, eq. 2: per head softmax(Q K^T / sqrt(dh)) V, heads concatenated; no output projection.
// q, k, v, y: [N, D]. The paper's qq form passes the same matrix as q and k; kk, vv and qk likewise.
// One pass over the keys with a running maximum: no N x N buffer.
Status attention(Context&, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Matrix y);

// Rotary position embedding: rot(x) = x cos + turn(x) sin for the columns of each head, turn([a, b]) = [-b, a] by halves.
// cos, sin: [N, dh], the same for every head; both null: no rotation. dh is even where they are given.
struct Rotary {
  const float* cos;
  const float* sin;
};

// Visual saliency, eq. 4: A_s = mean over heads of softmax(rot(Q) rot(K)^T / sqrt(dh)).
// With class_token: row 0, columns 1..N-1; saliency: [N - 1].
// Without: mean over the rows (the attention that each key receives); saliency: [N]; two passes, no N x N buffer.
Status saliency(Context&, ConstMatrix q, ConstMatrix k, int64_t heads, bool class_token, Rotary, float* saliency);

// means[u] = mean of scores[i] over the entries with unit[i] = u: the score of a visual token that several patches go into.
// scores: [size]; unit: [size], each in [0, units), every unit at least once; means: [units]. Sums in ascending order of i.
Status pool(Context&, const float* scores, const int32_t* unit, int64_t size, int64_t units, float* means);

// y_i = x_i / max(|x_i|, 1e-12). y may be x. not_finite("x", row).
Status unit_rows(Context&, ConstMatrix x, Matrix y);

// Read-out, eq. 2 to A_d: attention = out(context); embeddings = unit_rows(visual_projection(layer_norm(attention))).
// context, attention: [N, D]; embeddings: [N, E]. not_finite("x", row) as layer_norm and unit_rows.
struct ReadOut {
  const Linear* out;
  const float* post_norm_weight;
  const float* post_norm_bias;
  float epsilon;
  const Linear* visual_projection;
};
Status read_out(Context&, ConstMatrix context, const ReadOut&, Matrix attention, Matrix embeddings);

// SigLIP's read-out. Row i goes through the pooling head as a sequence of one row: its softmax over one key is 1, so the probe drops out
// (the value path of the head). The whole head over all rows gives the global vector, and its probe's attention is a saliency.
//   h = layer_norm(attention; post_norm), z_i = w_o (w_v h_i + b_v) + b_o, embeddings_i = unit(z_i + mlp(layer_norm(z_i; norm)))
//   p = softmax(w_q probe . w_k h / sqrt(dh)) per head; saliency = mean over heads of p; y = w_o (sum_j p_j w_v h_j) + b_o,
//   global = unit(y + mlp(layer_norm(y; norm)));  mlp(x) = fc2 gelu_tanh(fc1 x)
// attention: [N, D]; embeddings: [N, D]; global: [D]; saliency: [N]. not_finite("x", row).
struct SiglipReadOut {
  const float *post_norm_weight, *post_norm_bias;  // [D]
  const float* query;                              // [D]: w_q probe + b_q
  const Linear *key, *value, *out;                 // [D, D]
  const float *norm_weight, *norm_bias;            // [D]
  const Linear *fc1, *fc2;                         // [F, D], [D, F]
  int64_t heads;
  float epsilon;                                   // of both norms
};
Status siglip_read_out(Context&, ConstMatrix attention, const SiglipReadOut&, Matrix embeddings, float* global, float* saliency);

// Fine-grained cross-modal alignment, eq. 3. All rows are unit rows.
//   m = visual text^T, alpha = visual end_of_text, beta = text global
//   M_V[i,j] = alpha[i] exp(lambda beta[j] m[i,j]) / (P sum_k exp(lambda beta[k] m[i,k]))
//   M_T[i,j] = beta[j] exp(lambda alpha[i] m[i,j]) / (T sum_k exp(lambda alpha[k] m[k,j]))
//   task[i] = mean_j ((M_V + M_T) * m)[i,j];  for Alignment::mean task[i] = mean_j m[i,j]
// Alignment::fcma_clamped counts negative alpha and beta as zero.
// visual: [P, E], text: [T, E], end_of_text: [E], global (the class token's row of A_d): [E]; task: [P].
// The matrices, each [P, T] without padding, are written where the pointer is not null (not for Alignment::mean,
// which has only the similarity).
enum class Alignment : int { fcma, fcma_clamped, mean };
struct AlignmentMatrices {
  float* similarity;        // m
  float* visual_alignment;  // M_V
  float* text_alignment;    // M_T
};
Status align(Context&, ConstMatrix visual, ConstMatrix text, const float* end_of_text, const float* global, Alignment,
             float lambda, float* task, AlignmentMatrices);

// The indices of the k largest scores, ascending. Equal scores (and -0 = +0): the lower index wins. Entries whose
// `excluded` byte is not zero do not take part (null: all take part). k <= number of entries that take part.
// not_finite("scores", index) when an entry that takes part is NaN; infinities order as usual.
Status top_k(Context&, const float* scores, const uint8_t* excluded, int64_t size, int64_t k, int32_t* indices);

// The two-stage selection: the task_keep largest task scores, then the keep - task_keep largest saliencies among the other
// entries; ties as in top_k. indices: [keep] ascending; source: [keep] 0 where the task scores chose, 1 where the saliency did.
// task may be null where task_keep is 0, saliency where task_keep is keep. 0 <= task_keep <= keep <= size.
// not_finite("task" | "saliency", index) when an entry that takes part is NaN.
Status select(Context&, const float* task, const float* saliency, int64_t size, int64_t keep, int64_t task_keep, int32_t* indices,
              uint8_t* source);

// Nearest-centre merge. The kept rows are the centres; every other row joins the centre of highest cosine similarity
// (equal: the centre that comes first), and each centre becomes the plain mean of itself and the rows that joined it.
// features: [P, D]; kept: [K] ascending, distinct; tokens: [K, D]; assignment: [P] position in kept (of a kept row: its
// own); counts: [K] rows in each mean, 1 or more. not_finite("features", row).
Status merge(Context&, ConstMatrix features, const int32_t* kept, int64_t k, Matrix tokens, int32_t* assignment, int32_t* counts);

// Farthest points (DivPrune): `count` rows of x in the order of choice. d(i, j) = 1 - cos(x_i, x_j), a zero row's cosines being 0; the
// next row has the largest min_j d(i, j) over the seeds and the rows picked so far, none of which is picked again. Without seeds the
// first is the row of the largest min_j d(i, j) over all others. Equal distances: the lower index. float32 whatever the precision.
// x: [P, F]; seeds: distinct; picked: [count]; seed_count + count <= P. not_finite("x", row).
Status farthest_points(Context&, ConstMatrix x, const int32_t* seeds, int64_t seed_count, int64_t count, int32_t* picked);

// Greedy MAP of a determinantal point process (CDPruner): `count` rows of x in the order of choice. g the relevance,
//   L_ij = (1 - blend + blend g_i g_j) cos(x_i, x_j), where cos(x_i, x_i) is 1, and 0 for a row of length 1e-12 or less; d_i = L_ii
//   pick j = argmax d over the rest; e = (L_j - sum_s c_s[j] c_s) / sqrt(d_j); c_s = e; d_i -= e_i^2
// until d_j <= 1e-5 max(first d); the rows that are missing then are the rest's largest g^2, largest first. Equal values: the lower
// index. float32 whatever the precision. x: [P, F]; relevance: [P]; blend: 0 to 1; picked: [count]; count <= P.
// not_finite("x", row), not_finite("relevance", index) where g^2 is not finite.
Status dpp(Context&, ConstMatrix x, const float* relevance, float blend, int64_t count, int32_t* picked);

// ------------------------------------------------------------------------------------------------------ in place of
//
// What the head runs in place of a listed kernel, where its weights allow it (fold.h). The names are the same on every device; the
// signatures are each device's own, in cpu/dispatch.h and cuda/kernels.cuh. Notation as above; W_k is [D, D], its rows of head h W_k,h.
//
//   normalize         in place of layer_norm: y_i = (x_i - mean(x_i)) / sqrt(var(x_i) + epsilon), since W y + b with the norm's
//                     weight and bias in it is one linear layer. It also leaves inverse_norms of x, which merge reads. CUDA, in the
//                     block: in place of rms_norm as well, without the mean.
//   inverse_norms     y_i = 1 / max(|x_i|, 1e-12): what merge divides by, for features that no normalize has seen.
//   attention         of a matrix with itself (qq, kk, vv) on the CPU: exp(q_i . q_j) is a Gaussian of |q_i - q_j|, which is symmetric,
//                     and every pair is computed once (cpu/gaussian.h). The kernel of that name sees to it by itself.
//   folded_saliency   in place of saliency with a class token: its scores are (W_k,h^T q_h) . x_j for its query q. W_k meets one row a
//                     head instead of every row of x; the keys' bias adds the same to every score, and softmax drops it.
//   linear_squares    CUDA, in place of read_out's products: one product by [C W_o; W_vis diag(gamma) C W_o], C the centring
//                     projector. Of y = C (W_o o + b_o) it leaves |y|^2 alone, and beside it W_vis diag(gamma) y.
//   folded_read_out   in place of read_out behind its product: p = W_vis diag(gamma) y / sqrt(|y|^2 / D + epsilon) + W_vis beta and
//                     A_d = p / max(|p|, 1e-12). CUDA has both parts of p from linear_squares; the CPU has y in the coordinates of
//                     RotatedReadOut, from linear, where p takes two terms an element.

}  // namespace desap
