// Bytes outside the engine's heap that a JavaScript object stands for. The collector is told, or it would not know what to gain.
#pragma once

#include <cstdint>
#include <utility>

#include "js.h"

namespace desap {

// Made and destroyed on the JavaScript thread.
class ExternalMemory {
 public:
  ExternalMemory() = default;
  ExternalMemory(napi_env env, int64_t bytes) : env_(env), bytes_(bytes) { tell(bytes); }
  ExternalMemory(ExternalMemory&& other) noexcept : env_(other.env_), bytes_(std::exchange(other.bytes_, 0)) {}
  ExternalMemory& operator=(ExternalMemory&& other) noexcept {
    std::swap(env_, other.env_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~ExternalMemory() { tell(-bytes_); }

 private:
  void tell(int64_t change) const {
    int64_t now;
    if (change != 0) napi_adjust_external_memory(env_, change, &now);
  }

  napi_env env_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace desap
