#include "arguments.h"

#include <cfloat>
#include <cmath>
#include <cstring>
#include <iterator>

#include "environment.h"

namespace desap {
namespace {

constexpr int64_t kMaximumExtent = INT32_MAX;  // the product of two still fits into int64_t

std::string quoted(const std::string& text) { return "'" + text + "'"; }

const char* name_of(napi_typedarray_type type) {
  switch (type) {
    case napi_uint16_array: return "a Uint16Array";
    case napi_int32_array: return "an Int32Array";
    case napi_uint8_array: return "a Uint8Array";
    default: return "a Float32Array";
  }
}

size_t element_bytes(napi_typedarray_type type) {
  switch (type) {
    case napi_uint16_array: return 2;
    case napi_uint8_array: return 1;
    default: return 4;
  }
}

int64_t integer_in(const Napi::Value& value, const std::string& name, int64_t low, int64_t high) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (!(number >= static_cast<double>(low) && number <= static_cast<double>(high) && number == std::floor(number))) {
    throw invalid("ERR_VALUE", name, type_of(value),
                  "an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return static_cast<int64_t>(number);
}

bool boolean_in(const Napi::Value& value, const std::string& name) {
  if (!value.IsBoolean()) throw invalid("ERR_VALUE", name, type_of(value), "true or false");
  return value.As<Napi::Boolean>().Value();
}

// The first of `size` elements; fails where there are not exactly that many of the wanted type.
const void* address_of(const std::string& name, const Napi::Value& data, napi_typedarray_type want, int64_t size) {
  napi_typedarray_type type;
  size_t length = 0;
  void* address = nullptr;
  if (!data.IsTypedArray() ||
      napi_get_typedarray_info(data.Env(), data, &type, &length, &address, nullptr, nullptr) != napi_ok ||
      type != want) {
    throw invalid("ERR_DTYPE", name, type_of(data), name_of(want));
  }
  // The view of a detached buffer, or of a resizable one that shrank, has length 0; its address can be stale.
  if (static_cast<int64_t>(length) != size || (size > 0 && !address)) {
    throw invalid(length == 0 ? "ERR_DETACHED" : "ERR_SHAPE", name, std::to_string(length) + " elements",
                  std::to_string(size) + " elements");
  }
  return address;
}

napi_typedarray_type element_type(bool half) { return half ? napi_uint16_array : napi_float32_array; }

MatrixArgument matrix_argument(const Napi::Value& value, const std::string& name) {
  if (!value.IsObject()) throw invalid("ERR_DTYPE", name, type_of(value), "a matrix ({ data, half, rows, cols })");
  const Napi::Object object = value.As<Napi::Object>();
  MatrixArgument matrix;
  matrix.name = name;
  matrix.data = object.Get("data");
  matrix.half = boolean_in(object.Get("half"), name + ".half");
  matrix.rows = integer_in(object.Get("rows"), name + ".rows", 1, kMaximumExtent);
  matrix.cols = integer_in(object.Get("cols"), name + ".cols", 1, kMaximumExtent);
  // Also checked when the memory is read; here before room is made for a result of that size.
  address_of(name, matrix.data, element_type(matrix.half), matrix.size());
  return matrix;
}

bool missing(const Napi::Value& value) { return value.IsNull() || value.IsUndefined(); }

int choice_in(const Napi::Value& value, const std::string& name, std::initializer_list<const char*> choices) {
  const std::string given = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  std::string wanted;
  int index = 0;
  for (const char* choice : choices) {
    if (given == choice) return index;
    wanted += (index++ ? " | " : "") + quoted(choice);
  }
  throw invalid("ERR_VALUE", name, type_of(value), wanted);
}

}  // namespace

std::string type_of(const Napi::Value& value) {
  static const char* const arrays[] = {"Int8Array",    "Uint8Array",    "Uint8ClampedArray", "Int16Array",
                                       "Uint16Array",  "Int32Array",    "Uint32Array",       "Float32Array",
                                       "Float64Array", "BigInt64Array", "BigUint64Array"};
  if (value.IsTypedArray()) {
    napi_typedarray_type type;
    if (napi_get_typedarray_info(value.Env(), value, &type, nullptr, nullptr, nullptr, nullptr) != napi_ok)
      return "an array";
    const size_t index = static_cast<size_t>(type);
    return index < std::size(arrays) ? arrays[index] : "Float16Array";
  }
  switch (value.Type()) {
    case napi_undefined: return "undefined";
    case napi_null: return "null";
    case napi_boolean: return value.As<Napi::Boolean>().Value() ? "true" : "false";
    case napi_number: return value.ToString().Utf8Value();
    case napi_string: return quoted(value.As<Napi::String>().Utf8Value());
    case napi_function: return "a function";
    case napi_symbol: return "a symbol";
    case napi_bigint: return "a BigInt";
    default: return value.IsArray() ? "an array" : "an object";
  }
}

Arguments::Arguments(const Napi::Value& object, const std::string& name) : name_(name) {
  if (!object.IsObject()) throw invalid("ERR_DTYPE", name, type_of(object), "an object");
  object_ = object.As<Napi::Object>();
}

MatrixArgument Arguments::matrix(const char* key) const { return matrix_argument(get(key), path(key)); }

MatrixArgument Arguments::matrix_or_null(const char* key) const {
  const Napi::Value value = get(key);
  return missing(value) ? MatrixArgument{} : matrix_argument(value, path(key));
}

VectorArgument Arguments::vector(const char* key) const { return {path(key), get(key)}; }

VectorArgument Arguments::vector_or_null(const char* key) const {
  const Napi::Value value = get(key);
  return missing(value) ? VectorArgument{} : VectorArgument{path(key), value};
}

VectorArgument Arguments::vector_or_index(const char* key, int64_t size, int64_t* index) const {
  const Napi::Value value = get(key);
  if (!value.IsNumber()) return {path(key), value};
  *index = integer_in(value, path(key), 0, size - 1);
  return {};
}

RotaryArgument Arguments::rotary_or_null(const char* key) const {
  const std::optional<Arguments> tables = object_or_null(key);
  return tables ? RotaryArgument{tables->vector("cos"), tables->vector("sin")} : RotaryArgument{};
}

Arguments Arguments::object(const char* key) const { return Arguments(get(key), path(key)); }

std::optional<Arguments> Arguments::object_or_null(const char* key) const {
  const Napi::Value value = get(key);
  return missing(value) ? std::nullopt : std::optional<Arguments>(Arguments(value, path(key)));
}

int64_t Arguments::integer(const char* key, int64_t low, int64_t high) const {
  return integer_in(get(key), path(key), low, high);
}

float Arguments::number(const char* key) const {
  const Napi::Value value = get(key);
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (!(std::fabs(number) <= FLT_MAX)) throw invalid("ERR_VALUE", path(key), type_of(value), "a finite number");
  return static_cast<float>(number);
}

bool Arguments::boolean(const char* key) const { return boolean_in(get(key), path(key)); }

int Arguments::choice(const char* key, std::initializer_list<const char*> choices) const {
  return choice_in(get(key), path(key), choices);
}

std::vector<MatrixArgument> matrix_arguments(const Napi::Value& value, const std::string& name) {
  if (!value.IsArray()) throw invalid("ERR_DTYPE", name, type_of(value), "an array of matrices");
  const Napi::Array array = value.As<Napi::Array>();
  std::vector<MatrixArgument> matrices;
  const uint32_t count = array.Length();  // reading a matrix can change it
  for (uint32_t i = 0; i < count; i++) matrices.push_back(matrix_argument(array.Get(i), name));
  return matrices;
}

// In the order of the enumerations.
Alignment alignment_of(const Arguments& arguments) {
  return static_cast<Alignment>(arguments.choice("alignment", {"fcma", "fcma-clamped", "mean"}));
}
static constexpr std::initializer_list<const char*> encodings = {"qq", "kk", "vv", "qk"};
Encoding encoding_of(const Arguments& arguments) { return static_cast<Encoding>(arguments.choice("encoding", encodings)); }
Encoding encoding_of(const Napi::Value& value) { return static_cast<Encoding>(choice_in(value, "encoding", encodings)); }

void expect_shape(const MatrixArgument& matrix, int64_t rows, int64_t cols) {
  if (matrix.rows == rows && matrix.cols == cols) return;
  const auto shape = [](int64_t r, int64_t c) { return "[" + std::to_string(r) + ", " + std::to_string(c) + "]"; };
  throw invalid("ERR_SHAPE", matrix.name, shape(matrix.rows, matrix.cols), shape(rows, cols));
}

void expect_divides(const char* name, int64_t divisor, int64_t width) {
  if (width % divisor != 0)
    throw invalid("ERR_VALUE", name, std::to_string(divisor), "a divisor of the width " + std::to_string(width));
}

void expect_halves(const std::string& name, int64_t head_size) {
  if (head_size % 2 != 0)
    throw invalid("ERR_VALUE", name, "tables for heads of the odd size " + std::to_string(head_size), "null");
}

int64_t length_of(const Napi::Value& value) {
  size_t length = 0;
  if (!value.IsTypedArray()) return -1;
  if (napi_get_typedarray_info(value.Env(), value, nullptr, &length, nullptr, nullptr, nullptr) != napi_ok) return -1;
  return static_cast<int64_t>(length);
}

Memory read_units(Napi::Env env, const VectorArgument& argument, int64_t size, int64_t units) {
  const Memory memory = MemoryReader(env, Access::copied).read(argument.name, argument.data, napi_int32_array, size);
  const int32_t* unit = static_cast<const int32_t*>(memory.data);
  std::vector<bool> met(static_cast<size_t>(units));
  for (int64_t i = 0; i < size; i++) {
    if (unit[i] < 0 || unit[i] >= units)
      throw invalid("ERR_VALUE", argument.name + "[" + std::to_string(i) + "]", std::to_string(unit[i]),
                    "an integer from 0 to " + std::to_string(units - 1));
    met[static_cast<size_t>(unit[i])] = true;
  }
  for (int64_t u = 0; u < units; u++) {
    if (!met[static_cast<size_t>(u)])
      throw invalid("ERR_VALUE", argument.name, "no " + std::to_string(u), "every unit below " + std::to_string(units));
  }
  return memory;
}

Memory MemoryReader::read(const std::string& name, const Napi::Value& data, napi_typedarray_type want, int64_t size) {
  const void* address = address_of(name, data, want, size);
  const size_t bytes = static_cast<size_t>(size) * element_bytes(want);
  if (access_ != Access::copied) {
    if (auto block = Environment::of(env_).pool->find(address, bytes)) return {address, block};
    if (access_ == Access::in_place) return {address, nullptr};
  }
  for (const Copy& copy : copies_) {
    if (copy.from == address && copy.bytes == bytes) return {copy.hold.get(), copy.hold};
  }
  const auto allocate = [bytes] { return std::shared_ptr<uint8_t>(new uint8_t[bytes], std::default_delete<uint8_t[]>()); };
  const std::shared_ptr<uint8_t> copy = Environment::of(env_).pool->or_trimmed(allocate);
  if (bytes > 0) std::memcpy(copy.get(), address, bytes);
  copies_.push_back({address, bytes, copy});
  return {copy.get(), copy};
}

Memory MemoryReader::matrix(const MatrixArgument& matrix) {
  return read(matrix.name, matrix.data, element_type(matrix.half), matrix.size());
}

FloatInput::FloatInput(MemoryReader& reader, const MatrixArgument& argument)
    : memory_(reader.matrix(argument)), half_(argument.half), rows_(argument.rows), cols_(argument.cols) {}

Status FloatInput::widen(Context& context) {
  if (!half_) return {};
  widened_.reset(new float[static_cast<size_t>(rows_ * cols_)]);
  return convert_half(context, static_cast<const uint16_t*>(memory_.data), rows_ * cols_, widened_.get());
}

ConstMatrix FloatInput::matrix() const {
  return {half_ ? widened_.get() : static_cast<const float*>(memory_.data), rows_, cols_, cols_};
}

VectorOutput::VectorOutput(MemoryReader& reader, const VectorArgument& argument, int64_t size) : name_(argument.name), size_(size) {
  if (!argument.given()) return;
  memory_ = reader.float32(argument.name, argument.data, size);
  const void* const own = address_of(argument.name, argument.data, napi_float32_array, size);
  if (memory_.data != own) target_ = Napi::Persistent(argument.data.As<Napi::Object>());
}

// Blocks and copies are nobody's constants.
float* VectorOutput::data() const { return static_cast<float*>(const_cast<void*>(memory_.data)); }

void VectorOutput::deliver() const {
  if (target_.IsEmpty()) return;
  const void* const target = address_of(name_, target_.Value(), napi_float32_array, size_);
  std::memcpy(const_cast<void*>(target), memory_.data, static_cast<size_t>(size_) * sizeof(float));
}

}  // namespace desap
