// The JavaScript class Context: Driver of src/devices/driver.ts.
#pragma once

#include <memory>
#include <string>

#include "executor.h"
#include "js.h"
#include "wrapped.h"

namespace desap {

class ContextObject : public Wrapped<ContextObject> {
 public:
  static constexpr napi_type_tag tag = {0x5b0d2f6e91c84a37, 0xa7e3914cf05d682b};

  static Napi::Function define(Napi::Env);
  explicit ContextObject(const Napi::CallbackInfo&);
  // As dispose(): work in flight ends first, nothing new begins. Heads, blocks and analyses hold the executor, and read through it; who
  // wants to compute with them holds this object too.
  ~ContextObject();

 private:
  Napi::Value run(const Napi::CallbackInfo&);
  Napi::Value create_head(const Napi::CallbackInfo&);
  Napi::Value create_block(const Napi::CallbackInfo&);
  Napi::Value create_analysis(const Napi::CallbackInfo&);
  Napi::Value prune_all(const Napi::CallbackInfo&);
  Napi::Value cancel(const Napi::CallbackInfo&);
  void dispose(const Napi::CallbackInfo&);
  Napi::Value device(const Napi::CallbackInfo&);
  Napi::Value description(const Napi::CallbackInfo&);
  Napi::Value precision(const Napi::CallbackInfo&);

  std::shared_ptr<Executor> executor_;
  std::string device_, description_, precision_;
};

}  // namespace desap
