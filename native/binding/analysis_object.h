// The JavaScript class of an analysis: DriverAnalysis of src/devices/driver.ts.
#pragma once

#include <memory>
#include <vector>

#include "../head.h"
#include "executor.h"
#include "external_memory.h"
#include "js.h"
#include "prune_job.h"
#include "wrapped.h"

namespace desap {

// The analysis that is made of parts (AnalysisParts of src/devices/driver.ts), or a promise of it. Throws Fault.
Napi::Value create_analysis_object(Napi::Env, const std::shared_ptr<Executor>&, const Napi::Value& parts, bool sync);

// What each of the analyses, which are of this executor, gives for its own request, or a promise of that (PruneOutput[]). Throws Fault.
Napi::Value prune_analyses(Napi::Env, const std::shared_ptr<Executor>&, const Napi::Value& analyses, const Napi::Value& requests,
                           bool sync);

class AnalysisObject : public Wrapped<AnalysisObject> {
 public:
  static constexpr napi_type_tag tag = {0x3c1f5a0e77d94b26, 0x9e2b60c8a4d1f753};

  struct State {
    std::shared_ptr<Executor> executor;
    std::shared_ptr<const Analysis> analysis;
    bool half = false;                      // the features were binary16, and so are the tokens merged from them
    // First byte of the rows that the kernels read and merging will read; null where that is the device's copy.
    const void* features = nullptr;
    std::vector<float> context, attention;  // intermediates [N, D] each, empty where not wanted
    double waited = 0;  // milliseconds: its share of the time that the call waited for the device
  };

  static Napi::Function define(Napi::Env);
  explicit AnalysisObject(const Napi::CallbackInfo&);

  const std::shared_ptr<Executor>& executor() const { return state_.executor; }
  std::shared_ptr<const Analysis> shared() const;  // throws Fault where it is disposed
  ImageShape shape() const { return {patches_, width_, projection_dim_, state_.half}; }

 private:
  Napi::Value prune(const Napi::CallbackInfo&);
  Napi::Value patch_embeddings(const Napi::CallbackInfo&);
  Napi::Value global(const Napi::CallbackInfo&);
  Napi::Value saliency(const Napi::CallbackInfo&);
  Napi::Value intermediates(const Napi::CallbackInfo&);
  void dispose(const Napi::CallbackInfo&);
  Napi::Value rows(const Napi::CallbackInfo&);
  Napi::Value patches(const Napi::CallbackInfo&);
  Napi::Value width(const Napi::CallbackInfo&);
  Napi::Value projection_dim(const Napi::CallbackInfo&);
  Napi::Value timings(const Napi::CallbackInfo&);
  Napi::Value features_address(const Napi::CallbackInfo&);

  State state_;  // empty once disposed
  ExternalMemory memory_;
  // These outlive it.
  int64_t rows_ = 0, patches_ = 0, width_ = 0, projection_dim_ = 0;
  AnalyzeTimings timings_ = {};
  double waited_ = 0;
  uint64_t address_ = 0;
};

}  // namespace desap
