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
  return Wrapped::define(env, "Context",
                         {method<&ContextObject::run>("run"), method<&ContextObject::create_head>("createHead"),
                          method<&ContextObject::create_block>("createBlock"),
                          method<&ContextObject::create_analysis>("createAnalysis"),
                          method<&ContextObject::prune_all>("pruneAll"), method<&ContextObject::cancel>("cancel"),
                          method<&ContextObject::dispose>("dispose"),
                          accessor<&ContextObject::device>("device"),
                          accessor<&ContextObject::description>("deviceDescription"),
                          accessor<&ContextObject::precision>("precision")});
}

ContextObject::ContextObject(const Napi::CallbackInfo& info) {
  device::Opened opened = device::open(info[0]);
  device_ = std::move(opened.device);
  description_ = std::move(opened.description);
  precision_ = opened.precision;
  Environment& environment = Environment::of(info.Env());
  executor_ = std::make_shared<Executor>(std::move(opened.context), opened.streams, environment.pool);
  environment.add(executor_);
}

ContextObject::~ContextObject() {
  if (executor_) executor_->close();
}

Napi::Value ContextObject::run(const Napi::CallbackInfo& info) {
  executor_->check_open();
  const bool sync = info[2].ToBoolean();
  Prepared job = prepare_kernel(info.Env(), info[0].ToString().Utf8Value(), info[1], sync);
  return executor_->execute(info.Env(), std::move(job), sync);
}

Napi::Value ContextObject::create_head(const Napi::CallbackInfo& info) {
  return create_head_object(info.Env(), executor_, info[0]);
}

Napi::Value ContextObject::create_block(const Napi::CallbackInfo& info) {
  return create_block_object(info.Env(), executor_, info[0]);
}

Napi::Value ContextObject::create_analysis(const Napi::CallbackInfo& info) {
  const bool sync = info[1].ToBoolean();
  return create_analysis_object(info.Env(), executor_, info[0], sync);
}

Napi::Value ContextObject::prune_all(const Napi::CallbackInfo& info) {
  return prune_analyses(info.Env(), executor_, info[0], info[1], info[2].ToBoolean());
}

Napi::Value ContextObject::cancel(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), executor_->cancel(info.Env(), info[0]));
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
