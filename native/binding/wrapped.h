// C++ objects behind JavaScript objects: what a class of this addon is to JavaScript.
#pragma once

#include <initializer_list>
#include <memory>
#include <utility>

#include "environment.h"
#include "errors.h"
#include "js.h"

namespace desap {

// `T` has a constructor that takes the call's arguments, and `tag`, a napi_type_tag of its own. JavaScript can call a member on
// any object, and can give any object the prototype of the class: an object is one of the class where it has the tag.
template <class T>
class Wrapped {
 public:
  static Napi::Function define(Napi::Env env, const char* name, std::initializer_list<napi_property_descriptor> members) {
    napi_value made;
    check(env, napi_define_class(env, name, NAPI_AUTO_LENGTH, construct, nullptr, members.size(), members.begin(), &made));
    return {env, made};
  }
  template <auto member>
  static napi_property_descriptor method(const char* name) {
    napi_property_descriptor property = {};
    property.utf8name = name;
    property.method = call<member>;
    return property;
  }
  template <auto member>
  static napi_property_descriptor accessor(const char* name) {
    napi_property_descriptor property = {};
    property.utf8name = name;
    property.getter = call<member>;
    return property;
  }

  // The object behind a value; null where that is something else.
  static T* of(const Napi::Value& value) {
    bool ours = false;
    void* object = nullptr;
    if (!value.IsObject() || napi_check_object_type_tag(value.Env(), value, &T::tag, &ours) != napi_ok || !ours) return nullptr;
    return napi_unwrap(value.Env(), value, &object) == napi_ok ? static_cast<T*>(object) : nullptr;
  }

 private:
  static napi_value construct(napi_env env, napi_callback_info raw) {
    return enter(env, raw, [env](const Napi::CallbackInfo& info) {
      if (info.NewTarget().IsEmpty()) throw Napi::TypeError::New(env, "Illegal call of a constructor");
      auto object = std::make_unique<T>(info);
      check(env, napi_type_tag_object(env, info.This(), &T::tag));
      const auto finalize = [](napi_env, void* gone, void*) { delete static_cast<T*>(gone); };
      check(env, napi_wrap(env, info.This(), object.get(), finalize, nullptr, nullptr));
      object.release();
    });
  }
  template <auto member>
  static napi_value call(napi_env env, napi_callback_info raw) {
    return enter(env, raw, [env](const Napi::CallbackInfo& info) {
      T* const object = of(info.This());
      if (!object) throw Napi::TypeError::New(env, "Illegal invocation");
      return (object->*member)(info);
    });
  }
};

// Objects that only this addon makes, of `T::State`, which no script can have.
template <class T>
Napi::Object construct(Napi::Env env, const Napi::FunctionReference& constructor, typename T::State state) {
  Environment& environment = Environment::of(env);
  struct Reset {
    Environment& environment;
    ~Reset() { environment.making = {}; }
  } const reset{environment};
  environment.making = {&T::tag, &state};
  return constructor.New(std::initializer_list<napi_value>{});
}

// In the constructor of such an object: takes the state over.
template <class T>
typename T::State constructed_from(const Napi::CallbackInfo& info) {
  const Environment::Making made = std::exchange(Environment::of(info.Env()).making, {});
  if (made.tag != &T::tag) throw Napi::TypeError::New(info.Env(), "Illegal constructor");
  return std::move(*static_cast<typename T::State*>(made.state));
}

}  // namespace desap
