// What the addon exports: Addon of src/devices/addon.ts. Loaded once per environment (main thread, each worker).
#include <cstdlib>
#include <memory>
#include <string>

#include "analysis_object.h"
#include "block_object.h"
#include "context_object.h"
#include "device.h"
#include "environment.h"
#include "errors.h"
#include "head_object.h"
#include "host_buffer.h"
#include "js.h"

namespace desap {
namespace {

Napi::Value address_of(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  void* data = nullptr;
  if (info[0].IsTypedArray()) {
    napi_get_typedarray_info(env, info[0], nullptr, nullptr, &data, nullptr, nullptr);
  } else if (info[0].IsDataView()) {
    napi_get_dataview_info(env, info[0], nullptr, &data, nullptr, nullptr);
  } else {
    throw invalid("ERR_DTYPE", "view", "something else", "a typed array or a DataView");
  }
  return Napi::BigInt::New(env, static_cast<uint64_t>(reinterpret_cast<uintptr_t>(data)));
}

Napi::Value host_memory(const Napi::CallbackInfo& info) {
  const HostPool::Statistics statistics = Environment::of(info.Env()).pool->statistics();
  const Napi::Object result = Napi::Object::New(info.Env());
  put(result, "blocks", static_cast<double>(statistics.blocks));
  put(result, "bytes", static_cast<double>(statistics.bytes));
  put(result, "pooledBlocks", static_cast<double>(statistics.pooled_blocks));
  put(result, "pooledBytes", static_cast<double>(statistics.pooled_bytes));
  return result;
}

// What native code reads, which need not be `process.env`: a worker and Bun have copies of it.
Napi::Value environment_variable(const Napi::CallbackInfo& info) {
  const char* value = std::getenv(info[0].ToString().Utf8Value().c_str());
  return value ? Napi::Value(Napi::String::New(info.Env(), value)) : info.Env().Undefined();
}

// As `process.env` of Node's main thread does it; other threads may not read the environment meanwhile.
void set_environment_variable(const Napi::CallbackInfo& info) {
  const std::string name = info[0].ToString(), value = info[1].ToString();
#ifdef _WIN32
  _putenv_s(name.c_str(), value.c_str());
#else
  setenv(name.c_str(), value.c_str(), 1);
#endif
}

// Threads must be gone before the environment is: they would report to it, and a thread that waits keeps the process.
void shut_down(void* environment) {
  for (const std::weak_ptr<Executor>& weak : static_cast<Environment*>(environment)->executors) {
    if (const std::shared_ptr<Executor> executor = weak.lock()) executor->shut_down();
  }
}

void load(Napi::Env env, Napi::Object exports) {
  auto environment = std::make_unique<Environment>();
  const auto constructor = [&](const char* name) {
    return Napi::Persistent(env.Global().Get(name).As<Napi::Function>());
  };
  environment->float32 = constructor("Float32Array");
  environment->int32 = constructor("Int32Array");
  environment->uint8 = constructor("Uint8Array");
  environment->uint16 = constructor("Uint16Array");
  environment->block = Napi::Persistent(BlockObject::define(env));
  environment->head = Napi::Persistent(HeadObject::define(env));
  environment->analysis = Napi::Persistent(AnalysisObject::define(env));

  put(exports, "kind", device::kind);
  device::add_exports(env, exports);
  put(exports, "HostBuffer", HostBufferObject::define(env));
  put(exports, "Context", ContextObject::define(env));
  put(exports, "addressOf", function<address_of>(env, "addressOf"));
  put(exports, "environmentVariable", function<environment_variable>(env, "environmentVariable"));
  put(exports, "setEnvironmentVariable", function<set_environment_variable>(env, "setEnvironmentVariable"));
  put(exports, "hostMemory", function<host_memory>(env, "hostMemory"));

  // Last: what failed before has left nothing behind, and can be loaded again.
  check(env, napi_add_env_cleanup_hook(env, shut_down, environment.get()));
  env.SetInstanceData(environment.release());
}

}  // namespace
}  // namespace desap

NAPI_MODULE_INIT() {
  try {
    try {
      desap::load(env, Napi::Object(env, exports));
    } catch (...) {
      desap::caught(env).ThrowAsJavaScriptException();
    }
  } catch (const Napi::Error&) {
    // The environment is being terminated.
  }
  return exports;
}
