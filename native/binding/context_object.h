// The JavaScript class Context: NativeContext of src/devices/addon.ts.
#pragma once

#include <memory>
#include <string>

#include "executor.h"
#include "js.h"

namespace desap {

class ContextObject : public Napi::ObjectWrap<ContextObject> {
 public:
  static Napi::Function define(Napi::Env);
  explicit ContextObject(const Napi::CallbackInfo&);
  // Heads, analyses and jobs hold the executor too: whichever goes last frees it.
  ~ContextObject() override;

 private:
  Napi::Value run(const Napi::CallbackInfo&);
  Napi::Value create_head(const Napi::CallbackInfo&);
  void dispose(const Napi::CallbackInfo&);
  Napi::Value kind(const Napi::CallbackInfo&);
  Napi::Value description(const Napi::CallbackInfo&);

  std::shared_ptr<Executor> executor_;
  std::string description_;
};

}  // namespace desap
