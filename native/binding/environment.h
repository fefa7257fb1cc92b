// What one JavaScript environment (the main thread, or a worker) has of its own. There is no other mutable state.
#pragma once

#include <list>
#include <memory>

#include "executor.h"
#include "host_pool.h"
#include "js.h"

namespace desap {

struct Environment {
  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  const std::shared_ptr<HostPool> pool = std::make_shared<HostPool>();
  Napi::FunctionReference head, block, analysis;          // constructors of the wrappers
  Napi::FunctionReference float32, int32, uint8, uint16;  // typed array constructors, as they were at load time
  std::list<std::weak_ptr<Executor>> executors;

  // The object that is being made (wrapped.h): its class and its state.
  struct Making {
    const napi_type_tag* tag = nullptr;
    void* state = nullptr;
  };
  Making making;

  void add(const std::shared_ptr<Executor>& executor) {
    executors.remove_if([](const std::weak_ptr<Executor>& other) { return other.expired(); });
    executors.push_back(executor);
  }
};

}  // namespace desap
