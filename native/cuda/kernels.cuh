// The kernels on the device: what each launcher enqueues. Equations, ties and errors as in ../kernels.h; here pointers are
// device memory and calls return at once. head_run.cc strings them together inside a CUDA graph; the kernels of the list
// have their host call (../kernels.h) at the end of their file.
//
// Batches: the rows of all images follow each other. Where a kernel has to know which image a row belongs to, it reads the
// `Image` records, which live in device memory too: the grid is sized by the largest image (`Extent`), blocks beyond their
// own image's end return at once. So one graph serves every batch of the same extent.
//
// Deterministic: no float atomics; every sum has one order, which depends neither on the batch nor on the tile. Integer
// atomics (minimum of a row index) only where the order cannot show.
//
// Not-finite inputs are reported through `int* fault`: the smallest index at fault, INT_MAX where there is none.
#pragma once

#include "launch.h"
#include "operand.h"

namespace desap::cuda {

// A pointer that may change between two replays of a graph: where `slot` is set, the base address is read from device
// memory when the kernel starts, and `offset` bytes are added.
template <class T>
struct Relocatable {
  T* direct = nullptr;
  char* const* slot = nullptr;
  int64_t offset = 0;

  Relocatable() = default;
  Relocatable(T* pointer) : direct(pointer) {}
  Relocatable(char* const* slot_, int64_t offset_) : slot(slot_), offset(offset_) {}
  __host__ __device__ T* get() const { return slot ? reinterpret_cast<T*>(*slot + offset) : direct; }
};

// One image of a batch. Places in arrays that hold all images one after the other.
struct Image {
  int row, rows;         // hidden states, class token included: N
  int patch, patches;    // per-patch arrays (task, saliency, assignment): P
  int text, text_tokens; // rows of the text block: T
  int end_of_text;       // row of the text block that holds the end-of-text vector
  int keep, task_keep;   // K, k1
  int kept;              // place in the arrays of what is kept (indices, source, counts, tokens)
  const void* hidden;    // [rows, D], contiguous; device memory or mapped host memory
};

// What sizes the grids: number of images, the sum and the largest of each extent over them.
struct Extent {
  int images;
  int64_t rows, patches, kept;                    // sums
  int max_rows, max_patches, max_text_tokens, max_keep;
};

// Start times of the stages in nanoseconds of the device's global timer; null: not wanted. One thread of a stage's first
// block writes it.
using Stamp = unsigned long long*;

// ---- convert.cu -------------------------------------------------------------------------------------------------------

void convert_half(Queue&, const uint16_t* x, int64_t size, float* y);
void convert_to_half(Queue&, const float* x, int64_t size, uint16_t* y);

// exponent[0] = the e for which max |x| 2^e lies in [2^11, 2^12); 0 where x has no finite element other than 0. One block.
void magnitude(Queue&, ConstMatrix x, int* exponent);

// y = x 2^exponent[0] as an operand (exponent null: 0), from float32. Column c of head h of `size` columns goes to column
// h * padded_size + c; all else up to y.ld is zero. Plain matrices: heads 1, size = cols, padded_size = y.ld.
void to_operand(Queue&, Precision, ConstMatrix x, int heads, int padded_size, const int* exponent, Operand y);

// The way back: y = x 2^-exponent[0] (exponent null: 0) times scale[h] where scale is not null.
void from_operand(Queue&, Precision, ConstOperand x, int heads, int padded_size, const int* exponent, const float* scale,
                  Matrix y);

// The kernels of rows hold one in the registers of a block: layer_norm, rms_norm, normalize, unit_rows, siglip_read_out,
// folded_read_out and unit_mean take rows of up to so many elements.
constexpr int64_t widest_row = 16384;

// ---- layer_norm.cu ----------------------------------------------------------------------------------------------------

void layer_norm(Queue&, ConstMatrix x, const float* weight, const float* bias, float epsilon, Matrix y, int* fault);

// In place of layer_norm or rms_norm, in the head and the block: without its affine part, which is folded into the weights.
// x^_i = (x_i - mean) / sqrt(var + epsilon), or x_i / sqrt(mean square + epsilon), written as an operand
// [rows, padded_width(D)]. On the way, where `features` is not null: features = the patch rows as float32 [P, D], and
// inverse_norm[p] = 1 / |patch row p| (0 for a zero row), which the merge needs. fault: the row of the batch.
struct Normalize {
  const Image* images;
  Extent extent;
  int width;             // D
  bool half;             // the hidden states are binary16
  bool class_token;
  bool rms;              // rms_norm, else layer_norm
  float epsilon;
  Operand normal;                     // [rows, padded_width(D)]
  Relocatable<float> features;        // [P, D], or null
  Relocatable<float> inverse_norm;    // [P]
  int* fault;
  Stamp stamp;
};
void normalize(Queue&, Precision, const Normalize&);

// ---- rms_norm.cu ------------------------------------------------------------------------------------------------------

void rms_norm(Queue&, ConstMatrix x, const float* weight, float epsilon, Matrix y, int* fault);

// ---- unit_rows.cu -----------------------------------------------------------------------------------------------------

void unit_rows(Queue&, ConstMatrix x, Matrix y, int* fault);

// ---- linear.cu --------------------------------------------------------------------------------------------------------

// Weights [out, in] of a linear layer: y_n = scale[n] (x . w_n) + bias[n]. scale is a power of two; bias null: none.
struct Weights {
  ConstOperand weight;   // [out, padded_width(in)]; complete before the launch: read while preceding kernels still run
  const float* scale;    // [out]
  const float* bias;     // [out]
  int out, in;           // `in` padded to a multiple of 64
};

// y as an operand (out % 8 == 0), or as float32.
void linear(Queue&, Precision, ConstOperand x, int64_t rows, const Weights&, Operand y, Stamp);
void linear(Queue&, Precision, ConstOperand x, int64_t rows, const Weights&, Matrix y, Stamp);

// In place of read_out's products, in the head: the first `squared` columns (a multiple of 64) are not stored. Each slice of
// 64 of them leaves the sum of its squares, squares[row, slice]. The others go to y [rows, out - squared] as float32.
void linear_squares(Queue&, Precision, ConstOperand x, int64_t rows, const Weights&, int squared, float* squares, Matrix y,
                    Stamp);

// ---- attention.cu -----------------------------------------------------------------------------------------------------

// Per image and head softmax(scale[h] Q K^T) V, scale[h] with log2 e in it (the exponentials are of 2).
// q, k, v, y: [rows, heads * padded_size] operands whose rows have their own ld; q and k may be the same memory.
struct Attention {
  const Image* images;
  Extent extent;
  int heads, padded_size;   // one of head_sizes
  ConstOperand q, k, v;
  const float* scale;       // [heads]
  Operand y;
  Stamp stamp;
};
void attention(Queue&, Precision, const Attention&);

// ---- rotary.cu --------------------------------------------------------------------------------------------------------

// x = x cos + turn(x) sin for the `size` columns of each head, as in ../kernels.h, in place. cos, sin: [rows, size] in device
// memory, at most 1 in magnitude: then what fitted into the operand fits still (values of less than 2^14 for certain).
void rotate(Queue&, Precision, Operand x, int64_t rows, int heads, int padded_size, int size, Rotary);

// ---- saliency.cu ------------------------------------------------------------------------------------------------------

// Without a class token, or for keys at hand: A_s as in ../kernels.h from q and k as operands, scale as above.
// Scratch sizes are given by the functions beside.
struct Saliency {
  const Image* images;
  Extent extent;
  int heads, padded_size;
  bool class_token;
  ConstOperand q, k;
  const float* scale;              // [heads]
  float* scratch;                  // saliency_scratch(...) floats
  Relocatable<float> saliency;     // [P]
  Stamp stamp;
};
int64_t saliency_scratch(const Extent&, int heads, bool class_token);
void saliency(Queue&, Precision, const Saliency&);

// ---- self_attention.cc -----------------------------------------------------------------------------------------------

// attention of q and k that `rotate` has turned, and the saliency of the same weights: `attention`, and behind it `saliency`.
// scratch: saliency_scratch(extent, heads, false) floats.
void self_attention(Queue&, Precision, const Attention&, float* scratch, Relocatable<float> saliency);

// ---- folded_saliency.cu ----------------------------------------------------------------------------------------------

// In place of saliency with a class token, in the head: without the keys, u_h = W_k,h^T q_h for its query q,
// score = scale[h] x^_j . u_h (the keys' bias adds the same to every row's score, and softmax drops it). key.weight is
// [heads * padded_size, padded_width(D)] and key.scale its rows' scale.
struct FoldedSaliency {
  const Image* images;
  Extent extent;
  int heads, padded_size;
  ConstOperand normal;             // x^ [rows, key.in]
  ConstOperand q;                  // only the class tokens' rows are read
  Weights key;
  const float* scale;              // [heads]
  float* scratch;                  // folded_saliency_scratch(...) floats
  Relocatable<float> saliency;     // [P]
  Stamp stamp;
};
int64_t folded_saliency_scratch(const Extent&, int heads, int in);
void folded_saliency(Queue&, Precision, const FoldedSaliency&);

// ---- read_out.cu ------------------------------------------------------------------------------------------------------

// In place of read_out behind its products, in the head: from linear_squares to A_d. With y = C (W_o o + b_o), C the
// centring projector, and P' = W_vis diag(gamma) y as computed by linear_squares:
//   rstd_i = 1 / sqrt(sum of squares / D + epsilon),  A_d[i] = unit(rstd_i P'_i + shift),  shift = W_vis beta [E].
struct FoldedReadOut {
  const Image* images;
  Extent extent;
  int width, projection_dim;       // D, E
  bool class_token;
  float epsilon;
  const float* squares;            // [rows, slices]
  int slices;
  ConstMatrix projected;           // P' [rows, E]
  const float* shift;              // [E]
  float* scratch;                  // folded_read_out_scratch(...) floats
  Relocatable<float> embeddings;   // A_d [rows, E]
  Relocatable<float> global;       // v_s [images, E]: the class token's row, else the normalised mean of the rows
  int* fault;                      // rows that overflowed
  Stamp stamp;
};
int64_t folded_read_out_scratch(const Extent&, int projection_dim, bool class_token);
void folded_read_out(Queue&, const FoldedReadOut&);
// Its last part, without a class token: global from embeddings.
void unit_mean(Queue&, const FoldedReadOut&);

// ---- siglip_read_out.cu -----------------------------------------------------------------------------------------------

// As in ../kernels.h, but for one thing: `embeddings` has a row more than `attention`, the last one, which is the global vector.
// The vectors of SiglipReadOut are in device memory. Waits for the GPU between its steps. not_finite("x", row).
class KernelRun;
Status siglip_read_out(KernelRun&, ConstMatrix attention, const SiglipReadOut&, Matrix embeddings, float* saliency);

// ---- pool.cu ----------------------------------------------------------------------------------------------------------

// means[u] = mean of scores[i] over the members i of unit u: member[begin[u]] .. member[begin[u + 1] - 1], ascending.
void pool(Queue&, const float* scores, const int* begin, const int* member, int64_t units, float* means);

// ---- stamp.cu ---------------------------------------------------------------------------------------------------------

// Writes the time, after all that was enqueued.
void note_time(Queue&, Stamp);

// ---- align.cu ---------------------------------------------------------------------------------------------------------

// Eq. 3 per image. visual: patch rows of A_d, unit rows, [.., E] (image.row plus the class token, if any, is the first);
// text: unit rows [.., E], an image's text tokens and its end-of-text row anywhere in it (image.text, image.end_of_text).
struct Align {
  const Image* images;
  Extent extent;
  int projection_dim;              // E
  bool class_token;
  Relocatable<const float> visual; // [rows, E]
  Relocatable<const float> global; // [images, E]
  const float* text;
  Alignment alignment;
  const float* lambda;             // device memory: a replay may change it
  float* scratch;                  // align_scratch(...) floats
  float* task;                     // [P]
  AlignmentMatrices matrices;      // null, or [P, T]; only with one image
  Stamp stamp;
};
int64_t align_scratch(const Extent&);
void align(Queue&, const Align&);

// ---- select.cu --------------------------------------------------------------------------------------------------------

// k1 largest of task, then keep - k1 largest of saliency (null: none) among the rest; indices ascending with their source (0 task,
// 1 saliency). P up to most_scores. task_fault, saliency_fault: the smallest place in the batch's patches that holds NaN
// and takes part.
constexpr int most_scores = 65536;
struct Select {
  const Image* images;
  Extent extent;
  const float* task;                   // [P]; of a k1 of 0 only that there is no NaN counts
  Relocatable<const float> saliency;   // [P], or null
  const uint8_t* excluded;             // [P] or null: these take no part (single kernel only)
  int* indices;                        // [kept]
  uint8_t* source;                     // [kept]
  int* task_fault;
  int* saliency_fault;
  Stamp stamp;
};
void select(Queue&, const Select&);

// ---- farthest_points.cu -----------------------------------------------------------------------------------------------

// A row with its score (greedy.cuh).
using Pick = unsigned long long;

// Per image farthest points as in ../kernels.h: image.task_keep seeds, image.keep - image.task_keep picks. The rows that both make
// go out ascending, with their source (0 seed, 1 pick), where `indices` is not null. The first pick without seeds is DivPrune's where
// there is room for `others`, and the row of the largest sum of distances, as in ../head.h, where there is room for `sums`.
struct FarthestPoints {
  const Image* images;
  Extent extent;
  int width;                                // W
  int steps;                                // the most picks of an image
  Relocatable<const float> rows;            // [P, W]
  Relocatable<const float> inverse_norm;    // [P]
  const int* seeds;                         // [kept], an image's from image.kept on
  // Where an image has no seeds one of these says what comes first: the row of the largest sum of distances, or (others) the row whose
  // nearest other is farthest. Null where it is not asked, or where every image has seeds.
  float* sums;                              // [images, W]
  unsigned* others;                         // [P]
  float* closest;                           // [P]
  Pick* picks;                              // [images, steps], in the order of choice
  int* indices;                             // [kept]
  uint8_t* source;                          // [kept]
};
void farthest_points(Queue&, const FarthestPoints&);

// ---- merge.cu ---------------------------------------------------------------------------------------------------------

// inverse_norm[i] = 1 / |x_i| (0 for a zero row). fault: row that is not finite or whose square leaves float32.
void inverse_norms(Queue&, ConstMatrix x, float* inverse_norm, int* fault);

// Nearest-centre merge per image, always with split operands (a flipped assignment is no rounding error), whatever the
// precision of the rest. merge false: kept rows as they are, assignment -1 for the others, counts 1. fault: the first kept row of the
// batch's patches that is not finite; with merge true, inverse_norms has told.
struct Merge {
  const Image* images;
  Extent extent;
  int width;                                // F
  bool merge;
  Relocatable<const float> features;        // [P, F]
  Relocatable<const float> inverse_norm;    // [P]
  const int* indices;                       // [kept], ascending within an image, counted from the image's first patch
  float* tokens;                            // [kept, F]
  int* assignment;                          // [P]
  int* counts;                              // [kept]
  uint8_t* scratch;                         // merge_scratch(...) bytes
  int* fault;
  Stamp assign_stamp, stamp;
};
int64_t merge_scratch(const Extent&);
void merge(Queue&, const Merge&);

}  // namespace desap::cuda
