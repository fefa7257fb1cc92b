// One run of the head: images analysed, pruned, or both, in one replay of a graph that was captured when a run of this
// shape was first seen.
//
//   send
//   normalize -> linear: q, v, k -> attention -> linear_squares -> folded_read_out     analyze
//        beside it: text -> unit_rows; saliency or folded_saliency
//   align (where there is text) -> select -> farthest_points (of the diversity) -> merge   prune
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

// The arrays of an analysis on the GPU: their addresses, or their places in a block.
template <class T>
struct ArraysOf {
  T features;      // [P, D], float32 like the others
  T inverse_norm;  // [P]
  T embeddings;    // [N, E]
  T global;        // [E]
  T saliency;      // [P]
};
using Arrays = ArraysOf<char*>;

// An image as the caller gives it; null what a run has no use for.
struct GivenImage {
  const HiddenStates* hidden = nullptr;
  const PruneRequest* request = nullptr;
  const PruneOutput* output = nullptr;
};

class HeadRun {
 public:
  // `head` null: the images are analysed already.
  HeadRun(Stream&, Precision, const HeadConfig&, const GpuHead* head);

  // Whether one run can take both images.
  static bool same_kind(const GivenImage&, const GivenImage&);

  void analyze(Encoding, bool intermediates);
  // `rows`: N of the image. What it points to outlives the run. unsupported.
  Status add(int64_t rows, const GivenImage&);
  // How large the arrays of all images' analyses are, and where the i-th image's stand in them.
  int64_t analysis_bytes() const;
  Arrays analysis_of(char* block, int64_t i) const;

  // `kept` are the arrays of the images' analyses: to be written, or to be read by `prune` alone. Null: nothing is kept.
  // After a fault `image` of the status is the run's.
  Status execute(const Arrays* kept);

  bool in_place(int64_t i) const { return in_place_[static_cast<size_t>(i)]; }  // whether the GPU read the caller's memory
  Status read_intermediates(const std::vector<Intermediates>&);
  void deliver(int64_t i) const;
  AnalyzeTimings analyze_timings(int64_t i) const;
  PruneTimings prune_timings(int64_t i) const;

 private:
  // What the first copy brings, besides the images' records and inputs.
  struct Header {
    Arrays analysis;
    char *map, *merge_features, *merge_inverse_norm;  // what selects, and what is merged: the analysis' or the caller's
    char *distances, *distance_inverse_norm;           // what has to differ: what is merged, or the caller's
    float lambda;
  };
  enum Stage { at_normalize, at_project, at_attention, at_read_out, at_align, at_select, at_merge, stages };
  // What the last copy brings, besides the results.
  struct Report {
    int hidden, overflow, text, task, saliency, distances, features;  // the smallest index at fault
    unsigned long long stamps[stages];                     // when the stage began, in nanoseconds
  };
  // Sent: header to own_distances. Sent and received: report. Received: the rest up to mirror_size.
  struct Places {
    int64_t header, images, text, own_task, own_map, own_features, own_distances, report;
    int64_t indices, source, assignment, counts, task, map, tokens, similarity, visual_alignment, text_alignment, mirror_size;
    int64_t analysis, normal, projected, context, squares, read_out, read_out_scratch, saliency_scratch, intermediate;
    int64_t unit_text, own_inverse_norm, align_scratch, merge_scratch;
    int64_t seeds, sums, closest, picks, distance_inverse_norm;  // of the diversity
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

  // What is asked of the run: its first image's request. The others agree in all that `same_kind` compares.
  const PruneRequest& request() const { return *given_.front().request; }
  bool prunes() const { return given_.front().request; }
  bool own_task() const { return prunes() && request().task; }
  // A map of the caller's stands for the one that the text gives; its matrices may be wanted still.
  bool aligns() const { return prunes() && request().text.data && (!own_task() || any(given_.front().output->matrices)); }
  bool merges() const { return prunes() && request().merge; }
  bool own_map() const { return prunes() && request().saliency; }
  bool own_features() const { return prunes() && request().features.data; }
  // Whether anything is left for the diversity to choose.
  bool diverse() const { return prunes() && request().complement == Complement::diversity && picks_ > 0; }
  bool begins_apart() const { return diverse() && has_seedless_; }
  bool own_distances() const { return diverse() && request().distances.data; }
  int64_t distance_width() const { return own_distances() ? request().distances.cols : feature_width(); }
  int64_t feature_width() const { return own_features() ? request().features.cols : config_.width; }
  bool half() const { return head_ && given_.front().hidden->half; }
  static bool any(const AlignmentMatrices& m) { return m.similarity || m.visual_alignment || m.text_alignment; }
  bool wants_map() const;               // the saliency of an analysis that is not kept
  AlignmentMatrices matrices() const;  // null where not wanted

  int64_t first_patch() const { return config_.class_token ? 1 : 0; }
  int projection_dim() const { return static_cast<int>(config_.projection_dim); }
  PackedHead::Block left() const, right() const;
  bool projects_k() const, folds_saliency() const, computes_saliency() const;
  int64_t projected_columns() const { return (projects_k() ? 3 : 2) * head_->weights.inner; }
  int64_t context_ld() const { return padded_width(head_->weights.inner); }

  void plan_memory();
  ArraysOf<int64_t> plan_analysis(MemoryPlan&) const;
  GraphKey key() const;
  Status send(const Arrays* kept);
  void enqueue();
  void enqueue_inputs(Queue&);
  void enqueue_analyze();
  void enqueue_saliency(Queue&);
  void enqueue_prune();
  void enqueue_diversity();
  Status fault() const;
  // The first stage of the pruning: without a text nothing is aligned.
  Stage first_of_prune() const { return aligns() ? at_align : at_select; }
  double share(int64_t i) const;
  double between(Stage, Stage, int64_t i) const;
  double after(Stage, int64_t i) const;

  Stream& stream_;
  const Precision precision_;
  const HeadConfig& config_;
  const GpuHead* const head_;

  Encoding encoding_ = Encoding::qq;
  bool intermediates_ = false;

  std::vector<GivenImage> given_;
  std::vector<Image> images_;
  std::vector<bool> in_place_;
  Extent extent_{};
  int64_t text_rows_ = 0;
  int64_t picks_ = 0;          // the most that an image's task scores leave
  bool has_seedless_ = false;  // whether an image's task scores choose none
  Places place_{};
  double milliseconds_ = 0;
};

}  // namespace desap::cuda
