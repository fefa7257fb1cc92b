#include "context_object.h"

#include <utility>

#include "analysis_object.h"
#include "block_object.h"
#include "device.h"
#include "environment.h"
#include "errors.h"
#include "head_object.h"
#include "kernel_jobs.h"

namespace desap {

Napi::Function ContextObject::define(Napi::Env env) {
  return DefineClass(
      env, "Context",
      {InstanceMethod<&ContextObject::run>("run"), InstanceMethod<&ContextObject::create_head>("createHead"),
       InstanceMethod<&ContextObject::create_block>("createBlock"),
       InstanceMethod<&ContextObject::create_analysis>("createAnalysis"),
       InstanceMethod<&ContextObject::prune_all>("pruneAll"), InstanceMethod<&ContextObject::dispose>("dispose"), InstanceAccessor<&ContextObject::device>("device"),
       InstanceAccessor<&ContextObject::description>("deviceDescription"),
       InstanceAccessor<&ContextObject::precision>("precision")});
}

ContextObject::ContextObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  guarded(info.Env(), [&] {
    device::Opened opened = device::open(info[0]);
    device_ = std::move(opened.device);
    description_ = std::move(opened.description);
    precision_ = opened.precision;
    executor_ = std::make_shared<Executor>(opened.context, opened.streams);
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
    Prepared job = prepare_kernel(info.Env(), info[0].ToString().Utf8Value(), info[1], sync);
    return executor_->execute(info.Env(), std::move(job), sync);
  });
}

Napi::Value ContextObject::create_head(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return create_head_object(info.Env(), executor_, info[0]); });
}

Napi::Value ContextObject::create_block(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return create_block_object(info.Env(), executor_, info[0]); });
}

Napi::Value ContextObject::create_analysis(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const bool sync = info[1].ToBoolean();
    return create_analysis_object(info.Env(), executor_, info[0], sync);
  });
}

Napi::Value ContextObject::prune_all(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return prune_analyses(info.Env(), executor_, info[0], info[1], info[2].ToBoolean()); });
}

void ContextObject::dispose(const Napi::CallbackInfo&) { executor_->close(); }

Napi::Value ContextObject::device(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), device_); }
Napi::Value ContextObject::description(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), description_);
}
Napi::Value ContextObject::precision(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), precision_);
}

}  // namespace desap
