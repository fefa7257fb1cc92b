// The pruning head: the order of the kernels, their workspace and the weights. SPEC: arXiv 2604.11240, sections 4.1-4.3.
//
//   analyze   X -> ln1 -> q, k, v -> attention -> read-out (A_d) and saliency (A_s)      what no question changes
//   prune     text -> unit rows -> align (A_t) -> select by A_t, then by A_s or farthest_points -> merge      once per question
#pragma once

#include <memory>

#include "kernels.h"

namespace desap {

// What chooses the tokens that the task scores leave: the largest saliencies, or the farthest points from those that are chosen. Where
// the task scores choose none, the first of these is the row i of the largest sum_j d(i, j); equal sums: the lower index.
enum class Complement : int { saliency, diversity };

enum class Encoding : int { qq, kk, vv, qk };  // operands of the decoupled attention, Table 4(b)

struct HeadConfig {
  int64_t width;           // D
  int64_t heads;           // H
  int64_t projection_dim;  // E
  bool class_token;        // row 0 is the class token
  float epsilon;           // of both layer norms
};

// float32, row-major, [out, in]. Read during Head::create only.
struct HeadWeights {
  const float *ln1_weight, *ln1_bias;                                          // [D]
  const float *q_weight, *q_bias, *k_weight, *k_bias, *v_weight, *v_bias;      // [D, D], [D]
  const float *out_weight, *out_bias;                                          // [D, D], [D]
  const float *post_norm_weight, *post_norm_bias;                              // [D]
  const float *visual_projection;                                              // [E, D]
};

// Memory that a job reads and that must outlive it. The binding hands out HostBuffer blocks and private copies this way.
using Hold = std::shared_ptr<const void>;

struct HiddenStates {
  const void* data;   // [N, D], contiguous rows
  bool half;          // binary16 bits instead of float32
  int64_t rows;       // N
  Hold hold;          // keeps `data` alive; null: the caller does until `analyze` returns, which then keeps a copy
};

// Time per stage in milliseconds. Of a batch each image gets its share of the whole.
struct AnalyzeTimings { double normalize, project, attention, saliency, read_out; };
struct PruneTimings { double align, select, merge; };

// Optional copies of the intermediates, each [N, D]; null where not wanted.
struct Intermediates { float* context; float* attention; };

// What an encoder without a head of ours says of an image: the parts of an analysis.
struct AnalysisParts {
  ConstMatrix patch_embeddings;  // [P, E]; made unit rows
  const float* global;           // [E], made a unit row; null: the normalised mean of the unit patch embeddings
  const float* saliency;         // [P]
  const void* features;          // [P, F], contiguous rows: what merging reads
  bool half;                     // the features are binary16
  int64_t width;                 // F
  Hold hold;                     // of the features, as in HiddenStates
};

struct PruneRequest {
  ConstMatrix text;              // [T, E], not normalised; data null: no text, and task_keep is 0 unless there is a task map
  const float* end_of_text;      // [E], not normalised; null: row `end_of_text_row` of text
  int64_t end_of_text_row;
  int64_t keep;                  // K, 1 <= K <= P
  int64_t task_keep;             // k1 = round-half-up(K * taskShare), 0 <= k1 <= K
  Alignment alignment;
  float lambda;
  const float* task;             // [P] map that replaces the one that the text gives; null: A_t
  const float* saliency;         // [P] map that replaces the analysis' own; null: its own
  bool merge;                    // false: kept rows as they are, which have to be finite; assignment -1 for dropped patches, counts 1
  ConstMatrix features;          // [P, F] rows to merge; data null: the hidden states' patch rows
  Complement complement;
  ConstMatrix distances;         // [P, W] rows whose distances count for the diversity; data null: the rows to merge
};

struct PruneOutput {
  float* tokens;                 // [K, F]
  int32_t* indices;              // [K] ascending
  uint8_t* source;               // [K] 0 task, 1 complement
  int32_t* assignment;           // [P] position in indices
  int32_t* counts;               // [K]
  float* task;                   // [P] the map that chose task_keep: the request's, else A_t; null where it is not wanted, or where there is neither
  float* saliency;               // [P] the map that chose the rest: the request's, else A_s; or null
  AlignmentMatrices matrices;    // each null or [P, T]
};

class Analysis;

class Head {
 public:
  // unsupported, out_of_memory.
  static Status create(Context&, const HeadConfig&, const HeadWeights&, std::shared_ptr<Head>*);
  ~Head();
  const HeadConfig& config() const;

  // One analysis per image; the images may differ in size. `copies` is null or has an entry per image.
  // not_finite("hidden", row) with the image, the first at fault; out_of_memory, unsupported. All or nothing.
  Status analyze(Context&, const HiddenStates* images, int64_t count, Encoding, const Intermediates* copies,
                 std::shared_ptr<Analysis>* analyses) const;

  // Analyses and prunes each image for its own request, in one go: nothing is kept. Errors of both, with the image, the first at
  // fault; what the outputs of the other images hold then is not defined.
  Status prune(Context&, const HiddenStates* images, int64_t count, Encoding, const PruneRequest*, const PruneOutput*,
               AnalyzeTimings*, PruneTimings*) const;

 private:
  struct State;
  struct Image;
  explicit Head(std::unique_ptr<State>);
  std::unique_ptr<State> state_;
};

// What is known of one image before it is asked about: A_d, A_s, and a reference to (or a copy of) the patch features, made by
// Head::analyze, or from parts that another encoder made. Immutable.
class Analysis {
 public:
  ~Analysis();
  int64_t rows() const;              // N; of an analysis from parts: P
  int64_t patches() const;           // P
  int64_t width() const;             // D; of an analysis from parts: F
  int64_t projection_dim() const;    // E
  // Any thread.
  Status read_patch_embeddings(float* out) const;  // the patches' rows of A_d [P, E], unit rows
  Status read_global(float* out) const;            // v_s [E]: the class token's row of A_d, else the normalised mean of the rows
  Status read_saliency(float* out) const;          // A_s [P]
  // CPU: the patch rows [P, D] that merging reads, float32: the caller's own memory when that was float32 and held (the
  // analysis then shares the hold), otherwise a copy. Half is converted once, by `analyze`; its hold is not kept.
  // CUDA: the first patch row in the caller's memory where the GPU read it in place (pinned and held), otherwise null:
  // merging reads the GPU's own copy.
  const void* features() const;
  const AnalyzeTimings& timings() const;

  // An analysis from parts, all of them finite. Everything but held float32 features is copied.
  // not_finite("patchEmbeddings" | "global" | "saliency" | "features", row), the first of them in this order; out_of_memory, unsupported.
  static Status from(Context&, const AnalysisParts&, std::shared_ptr<Analysis>*);

  // not_finite("text" | "endOfText" | "task" | "saliency" | "features", row), out_of_memory. Nothing is written on failure.
  Status prune(Context&, const PruneRequest&, const PruneOutput&, PruneTimings*) const;

 private:
  friend class Head;
  struct State;
  explicit Analysis(std::unique_ptr<State>);
  std::unique_ptr<State> state_;
};

}  // namespace desap
