// The JavaScript class behind createBlock: DriverBlock of src/devices/driver.ts.
#pragma once

#include <memory>

#include "../block.h"
#include "executor.h"
#include "js.h"
#include "wrapped.h"

namespace desap {

// A promise of the block head that a job makes of the weights (BlockWeights of src/block-weights.ts). Throws Fault.
Napi::Value create_block_object(Napi::Env, const std::shared_ptr<Executor>&, const Napi::Value& weights);

class BlockObject : public Wrapped<BlockObject> {
 public:
  static constexpr napi_type_tag tag = {0xe20d94f7b6a1583c, 0x47c85a1fd3926e0b};

  struct State {
    std::shared_ptr<Executor> executor;
    std::shared_ptr<const Block> block;
  };

  static Napi::Function define(Napi::Env);
  explicit BlockObject(const Napi::CallbackInfo&);

 private:
  Napi::Value analyze(const Napi::CallbackInfo&);
  void dispose(const Napi::CallbackInfo&);

  State state_;
};

}  // namespace desap
