#include "context_object.h"

#include <utility>

#include "device.h"
#include "environment.h"
#include "errors.h"
#include "head_object.h"
#include "kernel_calls.h"

namespace desap {

Napi::Function ContextObject::define(Napi::Env env) {
  return DefineClass(
      env, "Context",
      {InstanceMethod<&ContextObject::run>("run"), InstanceMethod<&ContextObject::create_head>("createHead"),
       InstanceMethod<&ContextObject::dispose>("dispose"), InstanceAccessor<&ContextObject::kind>("kind"),
       InstanceAccessor<&ContextObject::description>("description")});
}

ContextObject::ContextObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  guarded(info.Env(), [&] {
    device::Opened opened = device::open(info[0]);
    description_ = std::move(opened.description);
    executor_ = std::make_shared<Executor>(opened.context, opened.lanes);
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
  return Napi::String::New(info.Env(), description_);
}

}  // namespace desap
