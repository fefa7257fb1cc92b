// The JavaScript class behind createHead: DriverHead of src/devices/driver.ts.
#pragma once

#include <memory>

#include "../head.h"
#include "executor.h"
#include "js.h"
#include "wrapped.h"

namespace desap {

// A promise of the head that a job makes of the weights (HeadWeights of src/head.ts). Throws Fault.
Napi::Value create_head_object(Napi::Env, const std::shared_ptr<Executor>&, const Napi::Value& weights);

class HeadObject : public Wrapped<HeadObject> {
 public:
  static constexpr napi_type_tag tag = {0x84c1e7a2390b4d5f, 0xb16f02d8e95c437a};

  struct State {
    std::shared_ptr<Executor> executor;
    std::shared_ptr<const Head> head;
  };

  static Napi::Function define(Napi::Env);
  explicit HeadObject(const Napi::CallbackInfo&);

 private:
  Napi::Value analyze(const Napi::CallbackInfo&);
  Napi::Value prune(const Napi::CallbackInfo&);
  void dispose(const Napi::CallbackInfo&);

  State state() const;  // throws Fault where it cannot be used any more

  State state_;
};

}  // namespace desap
