// What an analysis holds on the CPU, and small things that its two makers share: the head, and Analysis::from.
#pragma once

#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

#include "../head.h"
#include "dispatch.h"
#include "memory.h"
#include "weights.h"

namespace desap {

// Milliseconds since the last lap.
class Stopwatch {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double milliseconds = std::chrono::duration<double, std::milli>(now - last_).count();
    last_ = now;
    return milliseconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// A kernel names its own input; the caller of the head knows another name for it.
inline Status rename(Status status, const char* what) {
  if (status.code == Code::not_finite) status.what = what;
  return status;
}

// Of a call for several images an error says which.
inline Status of_image(Status status, int64_t image, int64_t count) {
  if (!status.good() && count > 1) status.image = image;
  return status;
}

inline Matrix padded(Scratch& scratch, int64_t rows, int64_t cols) {
  const int64_t ld = padded_ld(cols);
  return {scratch.floats(rows * ld), rows, cols, ld};
}

inline void copy_rows(ConstMatrix x, float* y) {
  for (int64_t i = 0; i < x.rows; i++) std::memcpy(y + i * x.cols, x.row(i), static_cast<size_t>(x.cols) * sizeof(float));
}

struct MemoryFree {
  void operator()(float* memory) const { free_memory(memory); }
};
using Memory = std::unique_ptr<float, MemoryFree>;

// The head keeps embeddings in the coordinates of RotatedReadOut, A_d U for A_d. Its analyses share the way there and back.
struct Rotation {
  LinearPointer text;       // t -> t U
  LinearPointer embedding;  // A_d U -> A_d
};

// What the stages of a pruning hand on, in scratch: a later one may still find an input at fault.
struct Aligned {
  float* task;                 // [P], A_t
  AlignmentMatrices matrices;  // each null or [P, T]
};
struct Selected {
  const float* task;      // [P], of the request or of its text; null without both
  const float* saliency;  // [P], of the request or of the analysis
  int32_t* indices;       // [K]
  uint8_t* source;        // [K]
};

struct Analysis::State {
  std::shared_ptr<const Rotation> rotation;  // null: the embeddings are in the text's own coordinates
  const Kernels* kernels;
  int64_t rows, patches, width, projection_dim;
  Hold hold;               // of `features`, where they are the caller's memory
  std::vector<float> own;  // otherwise: every row (half) or the patch rows (no hold)
  const float* features;   // [P, D]
  Memory results;          // holds the four below, unless they lie in the scratch of a call that keeps nothing
  float* embeddings;       // [N, E]
  float* saliency;         // [P]
  float* global;           // [E], v_s
  float* norms;            // [N], inverse norms of the rows whose last P are the features
  AnalyzeTimings timings;

  // Room for the results; in memory of their own where `scratch` is null.
  Status allocate(Scratch* scratch);
  // The features are the last P of the `rows` rows of data: that memory itself where it is float32 and held, else a copy. Gives
  // all the rows, as float32.
  Status keep_features(Context&, const void* data, bool half, const Hold&, const float** all);
  // v_s in the direction of the embeddings' mean.
  Status average(Context&);
  // Embeddings in the text's coordinates, on any thread.
  Status read(const float* from, int64_t count, float* out) const;

  // The stages of a pruning.
  Status align(Context&, Scratch&, const PruneRequest&, const AlignmentMatrices& wanted, Aligned*) const;
  Status select(Context&, Scratch&, const PruneRequest&, const float* computed, Selected*) const;
  Status complete(Context&, const PruneRequest&, const Selected&) const;  // what the task scores chose, with farthest points
  Status merge(Context&, const PruneRequest&, const int32_t* kept, const PruneOutput&) const;

  // The rows to merge.
  ConstMatrix merged(const PruneRequest& request) const {
    return request.features.data ? request.features : ConstMatrix{features, patches, width, width};
  }
  float* patch_embeddings() const { return embeddings + (rows - patches) * projection_dim; }
  const float* inverse_norms() const { return norms + (rows - patches); }  // [P], of the features
};

}  // namespace desap
