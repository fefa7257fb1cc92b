// The JavaScript class HostBuffer: an external ArrayBuffer over a block of the pool. Where the engine allows no external
// memory (Electron), an ordinary ArrayBuffer, which asynchronous calls copy (`inPlace` is false).
#pragma once

#include <memory>

#include "host_pool.h"
#include "js.h"

namespace desap {

class HostBufferObject : public Napi::ObjectWrap<HostBufferObject> {
 public:
  static Napi::Function define(Napi::Env);
  explicit HostBufferObject(const Napi::CallbackInfo&);

 private:
  // The ArrayBuffer's own hold of the block. Its finalizer runs an event-loop turn after the ArrayBuffer is gone;
  // dispose() does not wait for that.
  struct Lease {
    std::shared_ptr<HostBlock> block;
  };

  void dispose(const Napi::CallbackInfo&);

  std::shared_ptr<Lease> lease_;
};

}  // namespace desap
