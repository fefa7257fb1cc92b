// What goes wrong, on its way to JavaScript: an Error with a `code` (DesapErrorCode in src/errors.ts) and, where they
// are known, `argument`, `row` and `image`. The message leaves the argument's name out: the caller has its own.
#pragma once

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>

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
Fault out_of_memory();
Fault disposed(const char* what);
// Of a status that is not good.
Fault from_status(const Status&);

Napi::Error to_error(Napi::Env, const Fault&);

// Runs the body of a function that JavaScript calls; nothing but a Napi::Error leaves it.
template <class Body>
auto guarded(Napi::Env env, Body&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const Fault& fault) {
    throw to_error(env, fault);
  } catch (const std::bad_alloc&) {
    throw to_error(env, out_of_memory());
  } catch (const std::length_error&) {
    throw to_error(env, out_of_memory());
  }
}

}  // namespace desap
