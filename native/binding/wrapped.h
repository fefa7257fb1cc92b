// Objects that only this addon makes: their JavaScript constructor takes a C++ object that a script cannot have.
#pragma once

#include <memory>
#include <utility>

#include "errors.h"
#include "js.h"

namespace desap {

// Makes the wrapper around `state`.
template <class State>
Napi::Object construct(const Napi::FunctionReference& constructor, Napi::Env env, State state) {
  return constructor.New({Napi::External<State>::New(env, &state)});
}

// In the wrapper's constructor: takes the state over.
template <class State>
State constructed_from(const Napi::CallbackInfo& info) {
  if (!info.NewTarget().IsEmpty() && info.Length() == 1 && info[0].IsExternal()) {
    return std::move(*info[0].As<Napi::External<State>>().Data());
  }
  throw Napi::TypeError::New(info.Env(), "Illegal constructor");
}

}  // namespace desap
