#include "context_object.h"

#include "arguments.h"
#include "device.h"
#include "environment.h"
#include "errors.h"
#include "head_object.h"
#include "kernel_calls.h"

namespace desap {
namespace {

constexpr int64_t kMaximumThreads = 256;

std::string isa_of(const Napi::Value& value) {
  const std::string isa = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  std::string supported;
  for (const std::string& name : device::isas()) {
    if (name == isa) return isa;
    supported += (supported.empty() ? "" : ", ") + name;
  }
  throw invalid("ERR_DEVICE_UNAVAILABLE", "isa", isa, "one that this machine runs: " + supported);
}

}  // namespace

Napi::Function ContextObject::define(Napi::Env env) {
  return DefineClass(
      env, "Context",
      {InstanceMethod<&ContextObject::run>("run"), InstanceMethod<&ContextObject::create_head>("createHead"),
       InstanceMethod<&ContextObject::dispose>("dispose"), InstanceAccessor<&ContextObject::kind>("kind"),
       InstanceAccessor<&ContextObject::description>("description"),
       InstanceAccessor<&ContextObject::threads>("threads"), InstanceAccessor<&ContextObject::isa>("isa")});
}

ContextObject::ContextObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  guarded(info.Env(), [&] {
    const Arguments options(info[0], "options");
    threads_ = static_cast<int>(options.integer("threads", 1, kMaximumThreads));
    isa_ = isa_of(info[0].As<Napi::Object>().Get("isa"));
    Context* context = nullptr;
    const Status status = device::open(threads_, isa_, &context);
    if (!status.good()) throw from_status(status);
    executor_ = std::make_shared<Executor>(context);
    Environment::of(info.Env()).add(executor_);
  });
}

ContextObject::~ContextObject() {
  if (executor_) executor_->close();
}

Napi::Value ContextObject::run(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    executor_->check_open();
    const bool sync = info[2].ToBoolean();
    Call call = kernel_call(info.Env(), info[0].ToString().Utf8Value(), info[1], sync);
    return executor_->execute(info.Env(), std::move(call), sync);
  });
}

Napi::Value ContextObject::create_head(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return create_head_object(info.Env(), executor_, info[0]); });
}

void ContextObject::dispose(const Napi::CallbackInfo&) { executor_->close(); }

Napi::Value ContextObject::kind(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), device::kind); }
Napi::Value ContextObject::description(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), device::describe(threads_, isa_));
}
Napi::Value ContextObject::threads(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), threads_); }
Napi::Value ContextObject::isa(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), isa_); }

}  // namespace desap
