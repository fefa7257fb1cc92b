// Weights on the GPU: folded in float64 on the host, scaled by powers of two, packed as operands.
//
// Each row of a weight matrix is scaled so that its largest element lies in [2^11, 2^12), well inside binary16 for both
// planes; Weights::scale undoes that. What a layer writes as an operand is scaled as well, by a power of two per head that
// follows from a bound, so it fits for certain: a normalised row has |x^| <= sqrt(D), hence |y_c| <= sqrt(D) |w_c| + |b_c|
// (Cauchy-Schwarz). Whoever reads such an operand undoes the scale exactly: the attention in its score's scale, the output
// projection in its columns.
#pragma once

#include <cstdint>
#include <vector>

#include "../head.h"
#include "kernels.cuh"
#include "stream.h"

namespace desap::cuda {

// A layer on the host, ready to be packed: rows and their scales.
class HostLayer {
 public:
  HostLayer(int64_t rows, int64_t columns);  // zeros
  // Row i of the layer is 2^exponent (w, bias), scaled as above. A row that is not set stays zero.
  void set(int64_t row, const double* w, double bias, int exponent);

  int64_t rows, columns;
  std::vector<float> weight, scale, bias;
};

// A layer on the GPU. Its columns are those of `heads` heads, each padded to `padded_size`.
class PackedLayer {
 public:
  Status pack(Stream&, Precision, const HostLayer&, int heads, int padded_size, bool with_bias);
  // Columns in one head, without padding between.
  Status pack(Stream&, Precision, const HostLayer&, bool with_bias);
  // Rows [begin, begin + count).
  Weights rows(int64_t begin, int64_t count) const;
  Weights all() const { return rows(0, all_.out); }

 private:
  DeviceBuffer memory_;
  Weights all_{};
};

// The attention's weights, of a head or of a block. Biases may be null.
struct AttentionWeights {
  const float *norm_weight, *norm_bias;                                    // [D]
  const float *q_weight, *q_bias, *k_weight, *k_bias, *v_weight, *v_bias;  // [D, D], [D]
  const float *out_weight, *out_bias;                                      // [D, D], [D]
};

// Behind `normalize`: projections, attention and output projection. dh' is the padded head size, H dh' the columns of q, k, v and
// the context.
struct PackedAttention {
  Status pack(Stream&, Precision, int64_t width, int64_t heads, const AttentionWeights&);

  enum Block { q, v, k };
  // The rows of one block of the projection, whose output is [.., q v k].
  Weights block(Block which) const { return projection.rows(which * inner, inner); }
  // The scale of the scores of two blocks: log2 e / sqrt(dh) without the blocks' own scales, [heads].
  const float* score_scale(Block a, Block b) const { return scales(a * 3 + b); }
  // Undoes the scale of the context, [heads].
  const float* context_scale() const { return scales(9); }

  int padded_size;        // dh'
  int64_t inner;          // H dh'
  PackedLayer projection; // [3 H dh', D]
  PackedLayer out;        // W_o, which undoes the scale of the context
  // On the host: the same scores' scale times 2^exponent, and what undoes the scale of the context, column by column [D].
  std::vector<float> score_scales(Block a, Block b, int exponent) const;
  std::vector<double> undo;

 private:
  const float* scales(int64_t row) const { return reinterpret_cast<const float*>(scales_.data()) + row * heads_; }
  std::vector<int> exponents_[3];  // [block][head]: the power of two by which the head's outputs are scaled
  DeviceBuffer scales_;
  int64_t heads_, size_;
};

// The head's weights as its graph reads them.
struct PackedHead : PackedAttention {
  Status pack(Stream&, Precision, const HeadConfig&, const HeadWeights&);

  const float* shift() const { return reinterpret_cast<const float*>(shift_.data()); }  // W_vis beta_post, [E]

  int squared;            // D rounded up to whole slices of 64: rows of the read-out's first part
  // [C W_o; W_vis diag(gamma) C W_o] with C = I - 1/D, the centring projector: from the context, the deviations of which
  // the post norm takes the variance, and the projection of what it normalises. `out` is for those who ask for the attention's
  // output: the centring has lost its mean.
  PackedLayer read_out;

 private:
  DeviceBuffer shift_;
};

// Copies to the GPU; the memory is read by when this returns.
Status send(Stream&, const std::vector<float>&, DeviceBuffer*);

}  // namespace desap::cuda
