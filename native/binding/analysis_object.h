// The JavaScript class behind analyze: DriverAnalysis of src/devices/driver.ts.
#pragma once

#include <memory>
#include <vector>

#include "../head.h"
#include "executor.h"
#include "js.h"

namespace desap {

struct AnalysisRecord {
  std::shared_ptr<Executor> executor;
  std::shared_ptr<const Analysis> analysis;
  int64_t embedding = 0;                  // E
  bool half = false;                      // the hidden states were binary16, and so are the tokens merged from them
  // First byte of the hidden states that the kernels read and merging will read; null where that is the device's copy.
  const void* features = nullptr;
  std::vector<float> context, attention;  // intermediates [N, D] each, empty where not wanted
};

class AnalysisObject : public Napi::ObjectWrap<AnalysisObject> {
 public:
  static Napi::Function define(Napi::Env);
  explicit AnalysisObject(const Napi::CallbackInfo&);
  ~AnalysisObject() override;

 private:
  Napi::Value prune(const Napi::CallbackInfo&);
  Napi::Value embedding(const Napi::CallbackInfo&);
  Napi::Value saliency(const Napi::CallbackInfo&);
  Napi::Value intermediates(const Napi::CallbackInfo&);
  void dispose(const Napi::CallbackInfo&);
  Napi::Value tokens(const Napi::CallbackInfo&);
  Napi::Value patches(const Napi::CallbackInfo&);
  Napi::Value width(const Napi::CallbackInfo&);
  Napi::Value timings(const Napi::CallbackInfo&);
  Napi::Value features_address(const Napi::CallbackInfo&);

  const AnalysisRecord& record() const;
  void release();

  std::shared_ptr<const AnalysisRecord> record_;  // null once disposed
  int64_t tokens_ = 0, patches_ = 0, width_ = 0;
  AnalyzeTimings timings_ = {};
  uint64_t address_ = 0;
  int64_t external_bytes_ = 0;  // what the collector was told
};

}  // namespace desap
