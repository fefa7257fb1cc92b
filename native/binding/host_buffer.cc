#include "host_buffer.h"

#include <cmath>
#include <new>
#include <string>

#include "environment.h"
#include "errors.h"

namespace desap {
namespace {

constexpr double kMaximumBytes = 70368744177664.0;  // 2^46, beyond every address space

size_t byte_length(const Napi::CallbackInfo& info) {
  const double bytes = info[0].IsNumber() ? info[0].As<Napi::Number>().DoubleValue() : -1;
  if (!(bytes >= 1 && bytes <= kMaximumBytes && bytes == std::floor(bytes))) {
    throw invalid("ERR_VALUE", "byteLength", info[0].ToString().Utf8Value(), "an integer from 1 to 2^46");
  }
  return static_cast<size_t>(bytes);
}

}  // namespace

Napi::Function HostBufferObject::define(Napi::Env env) {
  return DefineClass(env, "HostBuffer", {InstanceMethod<&HostBufferObject::dispose>("dispose")});
}

HostBufferObject::HostBufferObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  const Napi::Env env = info.Env();
  guarded(env, [&] {
    const size_t bytes = byte_length(info);
    try {
      lease_ = std::make_shared<Lease>(Lease{Environment::of(env).pool->allocate(bytes)});
    } catch (const std::bad_alloc&) {
      throw Fault{"ERR_OUT_OF_MEMORY", "HostBuffer: an allocation of " + std::to_string(bytes) + " bytes failed", ""};
    }
    const auto release = [](Napi::Env, void*, std::shared_ptr<Lease>* lease) { delete lease; };
    auto hold = std::make_unique<std::shared_ptr<Lease>>(lease_);
    const Napi::Value buffer = Napi::ArrayBuffer::New(env, lease_->block->data(), bytes, release, hold.get());
    hold.release();
    // A property of the object, not a reference from here: the collector then sees both as one.
    info.This().As<Napi::Object>().DefineProperty(
        Napi::PropertyDescriptor::Value("arrayBuffer", buffer, napi_enumerable));
    info.This().As<Napi::Object>().DefineProperty(Napi::PropertyDescriptor::Value(
        "pinned", Napi::Boolean::New(env, lease_->block->pinned()), napi_enumerable));
  });
}

void HostBufferObject::dispose(const Napi::CallbackInfo& info) {
  if (!lease_) return;
  const std::shared_ptr<Lease> lease = std::move(lease_);
  Napi::ArrayBuffer buffer = info.This().As<Napi::Object>().Get("arrayBuffer").As<Napi::ArrayBuffer>();
  // Where the memory was transferred to another ArrayBuffer, that one's end gives it back.
  if (buffer.IsDetached()) return;
  buffer.Detach();
  lease->block.reset();
}

}  // namespace desap
