// What goes wrong, on its way to JavaScript: an Error with a `code` (DesapErrorCode in src/errors.ts) and, where they
// are known, `argument`, `row` and `image`. The message leaves the argument's name out: the caller has its own.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "../status.h"
#include "js.h"

namespace desap {

struct Fault {
  const char* code;
  std::string message;
  std::string argument;
  int64_t row = -1;
  int64_t image = -1;
};

// `argument`: got X, wanted Y.
Fault invalid(const char* code, const std::string& argument, const std::string& got, const std::string& wanted);
Fault disposed(const char* what);
// Of a status that is not good.
Fault from_status(const Status&);

Napi::Error error_of(Napi::Env, const Fault&);

// In a catch block: what was thrown, as JavaScript is to get it. It allocates nothing itself, as the reason may be that nothing
// can be allocated; what it asks the engine for, the engine has, or ends the process. Throws Napi::Error where the environment
// takes no more values.
Napi::Error caught(Napi::Env);

// Runs what JavaScript calls. No C++ exception leaves it: above are frames of the engine, which must not be unwound.
template <class Body>
napi_value enter(napi_env env, napi_callback_info raw, const Body& body) noexcept {
  try {
    try {
      const Napi::CallbackInfo info(env, raw);
      if constexpr (std::is_void_v<decltype(body(info))>) {
        body(info);
      } else {
        return body(info);
      }
    } catch (...) {
      caught(env).ThrowAsJavaScriptException();
    }
  } catch (const Napi::Error&) {
    // The environment is being terminated.
  }
  return nullptr;
}

// A JavaScript function that calls `body`.
template <auto body>
Napi::Function function(Napi::Env env, const char* name) {
  const auto call = [](napi_env inner, napi_callback_info raw) { return enter(inner, raw, body); };
  napi_value made;
  check(env, napi_create_function(env, name, NAPI_AUTO_LENGTH, call, nullptr, &made));
  return {env, made};
}

}  // namespace desap
