#include "host_buffer.h"

#include <cmath>
#include <new>
#include <optional>
#include <string>

#include "arguments.h"
#include "environment.h"
#include "errors.h"

namespace desap {
namespace {

constexpr double kMaximumBytes = 70368744177664.0;  // 2^46, beyond every address space

size_t byte_length(const Napi::Value& value) {
  const double bytes = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (!(bytes >= 1 && bytes <= kMaximumBytes && bytes == std::floor(bytes)))
    throw invalid("ERR_VALUE", "byteLength", type_of(value), "an integer from 1 to 2^46");
  return static_cast<size_t>(bytes);
}

Fault allocation_failed(size_t bytes) {
  return {"ERR_OUT_OF_MEMORY", "HostBuffer: an allocation of " + std::to_string(bytes) + " bytes failed", ""};
}

// The ArrayBuffer's share in a lease.
using Hold = std::unique_ptr<std::shared_ptr<void>>;

// An ArrayBuffer over the block, or none where the engine allows no external memory (Electron). `hold` becomes its own.
std::optional<Napi::ArrayBuffer> external_buffer(Napi::Env env, const HostBlock& block, size_t bytes, Hold hold) {
  const auto release = [](napi_env, void*, void* lease) { delete static_cast<Hold::pointer>(lease); };
  napi_value buffer;
  const napi_status status = napi_create_external_arraybuffer(env, block.data(), bytes, release, hold.get(), &buffer);
  if (status == napi_no_external_buffers_allowed) return std::nullopt;
  check(env, status);
  hold.release();
  return Napi::ArrayBuffer(env, buffer);
}

// Through JavaScript: Node-API's own function ends the process where there is no such memory.
Napi::ArrayBuffer owned_by_engine(Napi::Env env, size_t bytes) {
  try {
    const Napi::Function constructor = env.Global().Get("ArrayBuffer").As<Napi::Function>();
    return constructor.New({Napi::Number::New(env, static_cast<double>(bytes))}).As<Napi::ArrayBuffer>();
  } catch (const Napi::Error&) {
    throw allocation_failed(bytes);
  }
}

}  // namespace

Napi::Function HostBufferObject::define(Napi::Env env) {
  return Wrapped::define(env, "HostBuffer", {method<&HostBufferObject::dispose>("dispose")});
}

HostBufferObject::HostBufferObject(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const size_t bytes = byte_length(info[0]);
  std::shared_ptr<HostBlock> block;
  try {
    block = Environment::of(env).pool->allocate(bytes);
  } catch (const std::bad_alloc&) {
    throw allocation_failed(bytes);
  }
  lease_ = std::make_shared<Lease>();
  lease_->beyond = ExternalMemory(env, static_cast<int64_t>(block->cost() - bytes));
  lease_->block = block;
  const auto external = external_buffer(env, *block, bytes, std::make_unique<std::shared_ptr<void>>(lease_));
  const bool pinned = external && block->pinned();
  if (!external) lease_.reset();
  const Napi::Value buffer = external ? *external : owned_by_engine(env, bytes);
  // Properties of the object, not references from here: the collector then sees both as one. They are constant.
  const auto add = [&](const char* name, napi_value value) {
    info.This().As<Napi::Object>().DefineProperty(Napi::PropertyDescriptor::Value(name, value, napi_enumerable));
  };
  add("arrayBuffer", buffer);
  add("inPlace", Napi::Boolean::New(env, external.has_value()));
  add("pinned", Napi::Boolean::New(env, pinned));
}

void HostBufferObject::dispose(const Napi::CallbackInfo& info) {
  const std::shared_ptr<Lease> lease = std::move(lease_);
  Napi::ArrayBuffer buffer = info.This().As<Napi::Object>().Get("arrayBuffer").As<Napi::ArrayBuffer>();
  // Where the memory was transferred to another ArrayBuffer, that one's end gives it back.
  if (buffer.IsDetached()) return;
  buffer.Detach();
  if (lease) *lease = {};
}

}  // namespace desap
