// One run of the head: images analysed, pruned, or both, in one replay of a graph that was captured when a run of this
// shape was first seen.
//
//   send
//   normalize -> linear: q, v, k -> attention -> linear: read-out -> embed         analyze
//        beside it: text -> unit rows; saliency
//   align (where there is text) -> select -> merge                                 prune
//   receive
//
// Whatever differs between two runs of a shape travels with `send`: where the images lie, text, lambda, where the analysis
// is kept. `send` and `receive` are one copy each, of page-locked memory planned as on the GPU.
#pragma once

#include <vector>

#include "weights.h"

namespace desap::cuda {

// The head's weights on their GPU.
struct GpuHead {
  HeadConfig config;
  std::shared_ptr<Engine> engine;
  PackedHead weights;
  int64_t serial;  // tells heads apart in the keys of graphs; never used again
};

// Places in a piece of memory, one after the other, each at a multiple of 256 bytes.
class MemoryPlan {
 public:
  int64_t take(int64_t bytes) {
    const int64_t place = size_;
    size_ += (bytes + 255) / 256 * 256;
    return place;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

// An analysis on the GPU: float32 [P, D], [P], [N, E], [E], [P].
struct Arrays {
  char *features, *inverse_norm, *embeddings, *global, *saliency;
};

class HeadRun {
 public:
  // `head` null: the images are analysed already.
  HeadRun(Stream&, Precision, const HeadConfig&, const GpuHead* head);

  // What is asked of every image. Requests of one run agree in all that `same_kind` compares.
  void analyze(Encoding, bool half, bool intermediates);
  void prune(const PruneRequest&, const PruneOutput&);
  static bool same_kind(const PruneRequest&, const PruneOutput&, const PruneRequest&, const PruneOutput&);

  // `tokens`: N of the image. unsupported.
  Status add(int64_t tokens, const HiddenStates*, const PruneRequest*);
  // How large the arrays of all images' analyses are, and where the i-th image's stand in them.
  int64_t analysis_bytes() const;
  Arrays analysis_of(char* block, int64_t i) const;

  // `kept` are the arrays of the images' analyses: to be written, or to be read by `prune` alone. Null: nothing is kept.
  // After a fault `image` of the status is the run's.
  Status execute(const Arrays* kept);

  bool in_place(int64_t i) const { return in_place_[static_cast<size_t>(i)]; }  // whether the GPU read the caller's memory
  Status read_intermediates(const std::vector<Intermediates>&);
  void deliver(int64_t i, const PruneRequest&, const PruneOutput&) const;
  AnalyzeTimings analyze_timings(int64_t i) const;
  PruneTimings prune_timings(int64_t i) const;

 private:
  // What the first copy brings, besides the images' records and inputs.
  struct Header {
    Arrays analysis;
    char *map, *merge_features, *merge_inverse_norm;  // what selects, and what is merged: the analysis' or the caller's
    float lambda;
  };
  enum Stage { at_normalize, at_project, at_attention, at_read_out, at_align, at_select, at_merge, stages };
  // What the last copy brings, besides the results.
  struct Report {
    int hidden, overflow, text, task, saliency, features;  // the smallest index at fault
    unsigned long long stamps[stages];                     // when the stage began, in nanoseconds
  };
  // Sent: header to own_features. Sent and received: report. Received: the rest up to mirror_size.
  struct Places {
    int64_t header, images, text, own_map, own_features, report;
    int64_t indices, source, assignment, counts, task, map, tokens, matrices[3], mirror_size;
    int64_t analysis, normal, projected, context, squares, read_out, embed_scratch, saliency_scratch, intermediate;
    int64_t unit_text, own_inverse_norm, align_scratch, merge_scratch;
    int64_t size;
  };

  template <class T>
  T* device(int64_t place) const {
    return reinterpret_cast<T*>(stream_.device() + place);
  }
  template <class T>
  T* mirror(int64_t place) const {
    return reinterpret_cast<T*>(stream_.mirror() + place);
  }
  Header* header() const { return device<Header>(place_.header); }
  Report* report() const { return device<Report>(place_.report); }
  Stamp stamp(Stage stage) const { return report()->stamps + stage; }
  Operand operand(int64_t place, int64_t ld) const;
  Operand block(PackedHead::Block) const;

  int64_t first_patch() const { return config_.class_token ? 1 : 0; }
  int projection_dim() const { return static_cast<int>(config_.projection_dim); }
  PackedHead::Block left() const, right() const;
  bool projects_k() const, folds_saliency() const, computes_saliency() const;
  int64_t projected_columns() const { return (projects_k() ? 3 : 2) * head_->weights.inner; }
  int64_t context_ld() const { return padded_width(head_->weights.inner); }

  void plan_memory();
  void plan_arrays(MemoryPlan&, int64_t (&places)[5]) const;
  GraphKey key() const;
  Status send(const Arrays* kept);
  void enqueue();
  void enqueue_inputs(Queue&);
  void enqueue_analyze();
  void enqueue_saliency(Queue&);
  void enqueue_prune();
  Status fault() const;
  // The first stage of the pruning: without a text nothing is aligned.
  Stage first_of_prune() const { return align_ ? at_align : at_select; }
  double share(int64_t i) const;
  double between(Stage, Stage, int64_t i) const;
  double after(Stage, int64_t i) const;

  Stream& stream_;
  const Precision precision_;
  const HeadConfig& config_;
  const GpuHead* const head_;

  Encoding encoding_ = Encoding::qq;
  bool half_ = false, intermediates_ = false;

  bool prune_ = false, align_ = false, merge_ = false, own_map_ = false, own_features_ = false;
  bool wants_map_ = false;  // the saliency of an analysis that is not kept
  bool wanted_[3] = {false, false, false};  // matrices of the alignment
  Alignment alignment_ = Alignment::fcma;
  float lambda_ = 0;
  int64_t feature_width_ = 0;

  std::vector<Image> images_;
  std::vector<const HiddenStates*> hidden_;
  std::vector<const PruneRequest*> requests_;
  std::vector<bool> in_place_;
  Extent extent_{};
  int64_t text_rows_ = 0;
  Places place_{};
  double milliseconds_ = 0;
};

}  // namespace desap::cuda
