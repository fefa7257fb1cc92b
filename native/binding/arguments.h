// Reading what JavaScript passes. In two steps, because reading a property can run the caller's code, which can take
// memory away that was looked at before: first every property (here), then, with no JavaScript in between, the memory
// (Memory, below). Everything is checked again although src/ has checked it: a wrong call must not crash the process.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../head.h"
#include "errors.h"
#include "js.h"

namespace desap {

struct VectorArgument {
  std::string name;
  Napi::Value data;
  bool given() const { return !data.IsEmpty(); }
};

// FloatMatrix of src/tensor.ts.
struct MatrixArgument {
  std::string name;
  Napi::Value data;
  bool half = false;
  int64_t rows = 0, cols = 0;
  bool given() const { return !data.IsEmpty(); }
  int64_t size() const { return rows * cols; }
};

// Rotary of kernels.h: both tables or none.
struct RotaryArgument {
  VectorArgument cos, sin;
  bool given() const { return cos.given(); }
};

// One object argument; all methods throw Fault.
class Arguments {
 public:
  Arguments(const Napi::Value& object, const std::string& name);

  MatrixArgument matrix(const char* key) const;
  MatrixArgument matrix_or_null(const char* key) const;
  VectorArgument vector(const char* key) const;
  VectorArgument vector_or_null(const char* key) const;
  // A vector, or where a number is given its value in `index`, which is below `size`.
  VectorArgument vector_or_index(const char* key, int64_t size, int64_t* index) const;
  RotaryArgument rotary_or_null(const char* key) const;
  Arguments object(const char* key) const;
  std::optional<Arguments> object_or_null(const char* key) const;

  int64_t integer(const char* key, int64_t low, int64_t high) const;
  float number(const char* key) const;  // finite
  bool boolean(const char* key) const;
  // Position in `choices`.
  int choice(const char* key, std::initializer_list<const char*> choices) const;

 private:
  std::string path(const char* key) const { return name_.empty() ? key : name_ + "." + key; }
  Napi::Value get(const char* key) const { return object_.Get(key); }

  Napi::Object object_;
  std::string name_;
};

std::vector<MatrixArgument> matrix_arguments(const Napi::Value&, const std::string& name);
Alignment alignment_of(const Arguments&);
Encoding encoding_of(const Arguments&);
Encoding encoding_of(const Napi::Value&);

// A value in the words of an error.
std::string type_of(const Napi::Value&);

// Fails with ERR_SHAPE, or with ERR_VALUE.
void expect_shape(const MatrixArgument&, int64_t rows, int64_t cols);
void expect_divides(const char* name, int64_t divisor, int64_t width);
void expect_halves(const std::string& name, int64_t head_size);  // of heads that are rotated

// Elements that a job reads.
struct Memory {
  const void* data = nullptr;
  Hold hold;  // null: the caller's own memory, which lasts as long as a synchronous call does
};

enum class Access {
  in_place,  // a synchronous call reads any memory where it is
  held,      // an asynchronous one reads HostBuffers where they are, and a copy of anything else
  copied,    // memory whose content was checked must not change afterwards
};

class MemoryReader {
 public:
  MemoryReader(Napi::Env env, Access access) : env_(env), access_(access) {}

  Memory float32(const std::string& name, const Napi::Value& data, int64_t size) {
    return read(name, data, napi_float32_array, size);
  }
  Memory matrix(const MatrixArgument&);
  Memory read(const std::string& name, const Napi::Value& data, napi_typedarray_type, int64_t size);

 private:
  struct Copy {
    const void* from;
    size_t bytes;
    Hold hold;
  };

  Napi::Env env_;
  Access access_;
  std::vector<Copy> copies_;  // one argument can stand in two places: q and k of the paper's form
};

// Elements of a typed array, -1 for anything else.
int64_t length_of(const Napi::Value&);

// The unit of each of `size` patches, a copy: each from 0 to units - 1, every one at least once.
Memory read_units(Napi::Env, const VectorArgument&, int64_t size, int64_t units);

// A matrix that a job reads as float32. Half precision is widened inside the job, off the JavaScript thread.
class FloatInput {
 public:
  FloatInput() = default;
  FloatInput(MemoryReader&, const MatrixArgument&);

  Status widen(Context&);
  ConstMatrix matrix() const;  // after widen

 private:
  Memory memory_;
  bool half_ = false;
  int64_t rows_ = 0, cols_ = 0;
  std::unique_ptr<float[]> widened_;
};

// A vector that a job reads.
class VectorInput {
 public:
  VectorInput() = default;
  VectorInput(MemoryReader& reader, const VectorArgument& argument, int64_t size) {
    if (argument.given()) memory_ = reader.float32(argument.name, argument.data, size);
  }
  const float* data() const { return static_cast<const float*>(memory_.data); }  // null where it was not given

 private:
  Memory memory_;
};

class RotaryInput {
 public:
  RotaryInput() = default;
  RotaryInput(MemoryReader& reader, const RotaryArgument& argument, int64_t size)
      : cos_(reader, argument.cos, size), sin_(reader, argument.sin, size) {}
  Rotary rotary() const { return {cos_.data(), sin_.data()}; }

 private:
  VectorInput cos_, sin_;
};

// A vector of the caller's that a job writes: in place where that is safe (Access), else in memory of its own, copied at the end.
class VectorOutput {
 public:
  VectorOutput() = default;
  VectorOutput(MemoryReader&, const VectorArgument&, int64_t size);

  float* data() const;  // null where it was not given
  void deliver() const;  // on the JavaScript thread, after the job. Throws Fault.

 private:
  Memory memory_;
  std::string name_;
  Napi::ObjectReference target_;  // where memory_ is not the caller's
  int64_t size_ = 0;
};

}  // namespace desap
