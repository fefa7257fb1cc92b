// CUDA as a device: the GPUs and the precision. Options: { device, precision, streams }.
#include "../cuda/context.h"
#include "arguments.h"
#include "device.h"
#include "errors.h"

namespace desap::device {
namespace {

constexpr int64_t kMaximumDevices = 1024, kMaximumStreams = 16;

std::string capability(const cuda::DeviceInfo& device) {
  return std::to_string(device.major) + "." + std::to_string(device.minor);
}

Napi::Value report(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const cuda::Availability availability = cuda::availability();
  const Napi::Array devices = Napi::Array::New(env);
  for (const cuda::DeviceInfo& device : availability.devices) {
    const Napi::Object entry = Napi::Object::New(env);
    put(entry, "index", device.index);
    put(entry, "name", device.name);
    put(entry, "capability", capability(device));
    put(entry, "memory", static_cast<double>(device.memory_bytes));
    put(devices, devices.Length(), entry);
  }
  const Napi::Object result = Napi::Object::New(env);
  put(result, "available", availability.available);
  put(result, "reason", availability.reason);
  put(result, "devices", devices);
  return result;
}

const cuda::DeviceInfo& find(const cuda::Availability& availability, int index) {
  for (const cuda::DeviceInfo& device : availability.devices) {
    if (device.index == index) return device;
  }
  const std::string reason = availability.available ? "no such GPU" : availability.reason;
  throw Fault{"ERR_DEVICE_UNAVAILABLE", "cuda:" + std::to_string(index) + ": " + reason, ""};
}

}  // namespace

const char* const kind = "cuda";

void add_exports(Napi::Env env, Napi::Object exports) {
  put(exports, "status", function<report>(env, "status"));
}

Opened open(const Napi::Value& options) {
  const Arguments arguments(options, "options");
  cuda::ContextOptions chosen;
  chosen.device = static_cast<int>(arguments.integer("device", 0, kMaximumDevices));
  chosen.precision =
      static_cast<Precision>(arguments.choice("precision", {precisions[0], precisions[1], precisions[2]}));
  chosen.streams = static_cast<int>(arguments.integer("streams", 1, kMaximumStreams));
  const cuda::Availability availability = cuda::availability();
  const cuda::DeviceInfo& device = find(availability, chosen.device);
  Opened opened;
  opened.device = "cuda:" + std::to_string(device.index);
  opened.description =
      device.name + ", cuda:" + std::to_string(device.index) + ", " + precisions[static_cast<int>(chosen.precision)];
  opened.precision = precisions[static_cast<int>(chosen.precision)];
  opened.streams = chosen.streams;
  Context* context = nullptr;
  const Status status = cuda::context_create(chosen, &context);
  if (!status.good()) throw from_status(status);
  opened.context.reset(context);
  return opened;
}

void close(Context* context) { cuda::context_destroy(context); }

void* allocate_pinned(size_t bytes) { return cuda::host_allocate(bytes); }
void free_pinned(void* memory) { cuda::host_free(memory); }

}  // namespace desap::device
