// The JavaScript class HostBuffer: an external ArrayBuffer over a block of the pool. Where the engine allows no external
// memory (Electron), an ordinary ArrayBuffer, which asynchronous calls copy (`inPlace` is false).
#pragma once

#include <memory>

#include "external_memory.h"
#include "host_pool.h"
#include "js.h"
#include "wrapped.h"

namespace desap {

class HostBufferObject : public Wrapped<HostBufferObject> {
 public:
  static constexpr napi_type_tag tag = {0xd7a3f0586c2e9b14, 0x1f84bd63a05e7c92};

  static Napi::Function define(Napi::Env);
  explicit HostBufferObject(const Napi::CallbackInfo&);

 private:
  // The ArrayBuffer's own hold of the block. Its finalizer runs an event-loop turn after the ArrayBuffer is gone;
  // dispose() does not wait for that.
  struct Lease {
    std::shared_ptr<HostBlock> block;
    ExternalMemory beyond;  // what the block costs above the bytes that the engine counts by itself
  };

  void dispose(const Napi::CallbackInfo&);

  std::shared_ptr<Lease> lease_;
};

}  // namespace desap
