// What is asked about one image: the options of a pruning, the memory that it reads, and the arrays that it fills.
// PruneRequest and PruneOutput of src/devices/driver.ts.
#pragma once

#include <cstdint>
#include <memory>

#include "../head.h"
#include "arguments.h"
#include "js.h"

namespace desap {

// What of an image its questions have to fit.
struct ImageShape {
  int64_t patches, width, embedding;  // P, D, E
  bool half;                          // the hidden states are binary16, and so are the tokens merged from them
};

// The part that a job has.
class Question {
 public:
  // Before `request` and `output` are given to the head.
  Status widen(Context&);
  // After the head has filled `output`.
  Status narrow(Context&) const;
  const PruneRequest& request() const { return request_; }
  const PruneOutput& output() const { return output_; }

 private:
  friend class QuestionArguments;
  PruneRequest request_{};
  PruneOutput output_{};
  FloatInput text_, features_;
  VectorInput query_, saliency_;
  bool has_features_ = false;
  int64_t token_size_ = 0;
  uint16_t* half_tokens_ = nullptr;  // where the tokens go in place of output_.tokens
  std::unique_ptr<float[]> wide_tokens_;
};

// The part that a call has, in the order of its methods. They are apart because reading a property can run the caller's
// code: with several images, all properties come first.
class QuestionArguments {
 public:
  QuestionArguments(const Napi::Value& request, const ImageShape&);
  // Room for the results: PruneOutput without its timings.
  Napi::Object allocate(Napi::Env);
  Question hold(MemoryReader&);
  const ImageShape& image() const { return image_; }

 private:
  const ImageShape image_;
  MatrixArgument text_, features_;
  VectorArgument query_, saliency_;
  bool matrices_ = false;
  Question question_;
};

void set_timings(Napi::Object, const AnalyzeTimings&);
void set_timings(Napi::Object, const PruneTimings&);

}  // namespace desap
