// The block head: the last block of an encoder whose read-out is not CLIP's (SPEC, "The last block").
//
//   hidden -> norm -> q, k, v -> attention (eq. 2, operands not rotated) -> out          rows for the family's own connector
//                             -> saliency (rotated q and k) -> pool by units              a score for each visual token
//                             -> its own attention (the same weights) -> out              rows for what follows in the encoder
//                      rows -> siglip_read_out                                            where SigLIP's head is there
//
// What it gives are parts of an analysis (head.h, Analysis::from): everything behind it is the same for every family.
// One image, or one frame of a video, is one sequence: attention never crosses. Rows of padding are not handed in.
#pragma once

#include <memory>

#include "head.h"

namespace desap {

enum class Norm : int { layer, rms };

struct BlockConfig {
  int64_t width;      // D
  int64_t heads;      // H
  Norm norm;          // in front of the attention
  float epsilon;      // of every norm
  int64_t mlp_width;  // F of SigLIP's head; 0: no read-out
};

// float32, row-major, [out, in]. Read during Block::create only. A bias may be null.
struct BlockWeights {
  const float *norm_weight, *norm_bias;                                        // [D]; of rms the bias is null
  const float *q_weight, *q_bias, *k_weight, *k_bias, *v_weight, *v_bias;      // [D, D], [D]
  const float *out_weight, *out_bias;                                          // [D, D], [D]
  // SigLIP's head; null without a read-out.
  const float *post_norm_weight, *post_norm_bias;                              // [D]
  const float* probe;                                                          // [D]
  const float *head_q_weight, *head_q_bias, *head_k_weight, *head_k_bias;      // [D, D], [D]
  const float *head_v_weight, *head_v_bias, *head_out_weight, *head_out_bias;  // [D, D], [D]
  const float *head_norm_weight, *head_norm_bias;                              // [D]
  const float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;                  // [F, D], [F], [D, F], [D]
};

// One sequence. Everything that it points to outlives the call.
struct BlockStates {
  HiddenStates hidden;  // [N, D], without padding
  Rotary rotary;        // [N, dh], or null
  const int32_t* unit;  // [N] the visual token of each patch; null: each is one
  int64_t units;        // of `unit`
};

// Null what is not wanted: of the read-out's three, which need one, all or none. Without `attention` and a read-out no decoupled attention
// is computed. Outputs overlap neither each other nor the hidden states.
struct BlockOutput {
  float* attention;       // [N, D], behind the output projection
  float* self_attention;  // [N, D], likewise: of rotated q and k, the weights that the saliency is the mean of
  float* saliency;        // [N]
  float* unit_saliency;   // [units]
  float* embeddings;      // [N, D] unit rows
  float* global;          // [D] unit vector
  float* probe_saliency;  // [N]
};

using BlockTimings = AnalyzeTimings;

class Block {
 public:
  // unsupported, out_of_memory.
  static Status create(Context&, const BlockConfig&, const BlockWeights&, std::shared_ptr<Block>*);
  ~Block();
  const BlockConfig& config() const;

  // One output and one timing (or null timings) per sequence; the sequences may differ in size. Memory is linear in N, whatever H:
  // three arrays [N, D] beside the hidden states and one output, and scratch; with self_attention that makes five in all, six where the
  // encoding reads k.
  // not_finite("hidden" | "cos" | "sin", row) with the image, the first at fault; out_of_memory, unsupported. What the outputs hold
  // then is not defined.
  Status analyze(Context&, const BlockStates* images, int64_t count, Encoding, const BlockOutput* outputs, BlockTimings*) const;

 private:
  struct State;
  struct Sequence;
  explicit Block(std::unique_ptr<State>);
  std::unique_ptr<State> state_;
};

}  // namespace desap
