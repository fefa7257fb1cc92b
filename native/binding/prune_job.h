// The job that prunes: images whose analyses exist, or whose hidden states are analysed first.
// PruneRequest and PruneOutput of src/devices/driver.ts.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../head.h"
#include "arguments.h"
#include "executor.h"
#include "js.h"

namespace desap {

// What of an image a request has to fit.
struct ImageShape {
  int64_t patches, width, projection_dim;  // P, D, E
  bool half;                               // the features are binary16, and so are the tokens merged from them
};

// One request as a job has it: the memory that it holds and reads, and the arrays that it fills.
struct Pruning {
  // Before `request` and `output` are given to the head, and after it has filled `output`.
  Status widen(Context&);
  Status narrow(Context&) const;

  PruneRequest request{};
  PruneOutput output{};
  FloatInput text, features, distances;
  VectorInput end_of_text, task, saliency;
  int64_t tokens_size = 0;
  uint16_t* half_tokens = nullptr;  // where the tokens go in place of output.tokens
  std::unique_ptr<float[]> wide_tokens;
};

// Reads the requests, one per image, and sets an element of `results` for each. Throws Fault.
std::vector<Pruning> prunings(Napi::Env, const std::vector<Napi::Value>& requests, const std::vector<ImageShape>&, MemoryReader&,
                              Napi::Array results);

class PruneJob : public Job {
 public:
  PruneJob(std::shared_ptr<Executor>, std::vector<std::shared_ptr<const Analysis>>, std::vector<Pruning>);
  PruneJob(std::shared_ptr<Executor>, std::shared_ptr<const Head>, Encoding, std::vector<HiddenStates>, std::vector<Pruning>);

  Status run(Context&) override;
  Napi::Value finish(Napi::Env, Napi::Object results) override;

 private:
  const std::shared_ptr<Executor> executor_;
  const std::vector<std::shared_ptr<const Analysis>> analyses_;  // or the next three
  const std::shared_ptr<const Head> head_;
  const Encoding encoding_ = Encoding::qq;
  const std::vector<HiddenStates> images_;
  std::vector<Pruning> prunings_;
  std::vector<AnalyzeTimings> analyze_timings_;
  std::vector<PruneTimings> prune_timings_;
};

void set_timings(Napi::Object, const AnalyzeTimings&);
void set_timings(Napi::Object, const PruneTimings&);
// An image's share of how long the call waited for the device.
void set_waiting(Napi::Object, double milliseconds);

}  // namespace desap
