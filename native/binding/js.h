// Node-API as this binding uses it: version 8, C++ exceptions on. A worker can be terminated in the middle of a call;
// an exception that its environment no longer takes is then dropped instead of ending the process.
#pragma once

#define NAPI_VERSION 8
#define NODE_ADDON_API_CPP_EXCEPTIONS
#define NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS

#include <napi.h>

#include <string>

namespace desap {

// Throws Napi::Error: what JavaScript threw, or what Node-API says is wrong.
inline void check(napi_env env, napi_status status) {
  if (status != napi_ok) throw Napi::Error::New(env);
}

// Properties as an object literal has them. Napi::Object::Set is an assignment: a setter of that name on Object.prototype or
// Array.prototype would run, see memory that a kernel is about to write, and could take it away.
inline void put_value(const Napi::Object& object, const char* key, napi_value value) {
  napi_property_descriptor property = {};
  property.utf8name = key;
  property.value = value;
  property.attributes = napi_default_jsproperty;
  check(object.Env(), napi_define_properties(object.Env(), object, 1, &property));
}

template <class Value>
void put(const Napi::Object& object, const char* key, const Value& value) {
  put_value(object, key, Napi::Value::From(object.Env(), value));
}

template <class Value>
void put(const Napi::Object& array, size_t index, const Value& value) {
  put(array, std::to_string(index).c_str(), value);
}

}  // namespace desap
