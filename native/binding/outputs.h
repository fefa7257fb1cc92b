// Results: typed arrays that V8 owns. External ArrayBuffers would pile up, because their finalizers only run when the
// event loop turns.
#pragma once

#include <new>

#include "../kernels.h"
#include "environment.h"
#include "errors.h"
#include "js.h"

namespace desap {

// A new typed array and its memory, which stays where it is for as long as the array lives.
template <class T>
struct Output {
  Napi::Value value;
  T* data = nullptr;
};

template <class T>
Output<T> new_array(const Napi::FunctionReference& constructor, Napi::Env env, int64_t size) {
  Output<T> output;
  output.value = Environment::of(env).pool->or_trimmed([&] {
    try {
      // The constructor refuses a size that memory does not hold; napi_create_arraybuffer would end the process.
      return constructor.New({Napi::Number::New(env, static_cast<double>(size))});
    } catch (const Napi::Error&) {
      throw std::bad_alloc();
    }
  });
  void* data = nullptr;
  check(env, napi_get_typedarray_info(env, output.value, nullptr, nullptr, &data, nullptr, nullptr));
  output.data = static_cast<T*>(data);
  return output;
}

inline Output<float> new_floats(Napi::Env env, int64_t size) {
  return new_array<float>(Environment::of(env).float32, env, size);
}
inline Output<int32_t> new_ints(Napi::Env env, int64_t size) {
  return new_array<int32_t>(Environment::of(env).int32, env, size);
}
inline Output<uint8_t> new_bytes(Napi::Env env, int64_t size) {
  return new_array<uint8_t>(Environment::of(env).uint8, env, size);
}
inline Output<uint16_t> new_halves(Napi::Env env, int64_t size) {
  return new_array<uint16_t>(Environment::of(env).uint16, env, size);
}

inline Matrix rows_of(float* data, int64_t rows, int64_t cols) { return {data, rows, cols, cols}; }

// The matrices of eq. 3 as an object { similarity, visualAlignment, textAlignment }, or null where they are not wanted;
// Alignment::mean has only the similarity.
inline Napi::Value new_matrices(Napi::Env env, bool wanted, Alignment alignment, int64_t patches, int64_t text,
                                AlignmentMatrices* matrices) {
  *matrices = {};
  if (!wanted) return env.Null();
  const auto add = [&](float** data) {
    const Output<float> output = new_floats(env, patches * text);
    *data = output.data;
    return output.value;
  };
  const bool both = alignment != Alignment::mean;
  const Napi::Object object = Napi::Object::New(env);
  put(object, "similarity", add(&matrices->similarity));
  put(object, "visualAlignment", both ? add(&matrices->visual_alignment) : env.Null());
  put(object, "textAlignment", both ? add(&matrices->text_alignment) : env.Null());
  return object;
}

}  // namespace desap
