#include "context.h"

#include <algorithm>
#include <new>

#include "stream.h"

namespace desap::cuda {
namespace {

// The machine code in this build. Code for x.y runs on every GPU of major version x from minor version y on.
constexpr int built_for[][2] = {{8, 0}, {8, 6}, {8, 9}, {9, 0}, {10, 0}, {12, 0}};

bool supported(int major, int minor) {
  return std::any_of(std::begin(built_for), std::end(built_for),
                     [&](const int (&built)[2]) { return built[0] == major && built[1] <= minor; });
}

std::string version_text(int major, int minor) { return std::to_string(major) + "." + std::to_string(minor); }
std::string version_text(int version) { return version_text(version / 1000, version % 1000 / 10); }

std::string failed(const char* call, cudaError_t error) {
  cudaGetLastError();
  return std::string(call) + ": " + cudaGetErrorName(error);
}

}  // namespace

Availability availability() {
  Availability result{false, "", {}};
  int driver = 0, runtime = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    cudaGetLastError();
    result.reason = "no NVIDIA driver";
    return result;
  }
  // A driver runs programs of every toolkit of its own major version.
  cudaRuntimeGetVersion(&runtime);
  if (driver / 1000 < runtime / 1000) {
    result.reason = "NVIDIA driver too old: it supports CUDA " + version_text(driver) + ", this build needs " +
                    version_text(runtime / 1000, 0);
    return result;
  }
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted != cudaSuccess && counted != cudaErrorNoDevice) {
    result.reason = failed("cudaGetDeviceCount", counted);
    return result;
  }
  std::string others;
  for (int i = 0; i < count; i++) {
    cudaDeviceProp properties{};
    const cudaError_t got = cudaGetDeviceProperties(&properties, i);
    if (got != cudaSuccess) {
      others += (others.empty() ? "" : ", ") + failed("cudaGetDeviceProperties", got);
    } else if (supported(properties.major, properties.minor)) {
      result.devices.push_back({i, properties.name, properties.major, properties.minor,
                                static_cast<int64_t>(properties.totalGlobalMem)});
    } else {
      others += (others.empty() ? "" : ", ") + std::string(properties.name) + " (" +
                version_text(properties.major, properties.minor) + ")";
    }
  }
  result.available = !result.devices.empty();
  if (count < 1) {
    cudaGetLastError();
    result.reason = "no CUDA device";
  } else if (!result.available) {
    result.reason = "no device of a supported compute capability (8.x, 9.0, 10.x, 12.x): " + others;
  }
  return result;
}

Status context_create(const ContextOptions& options, Context** context) try {
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  cudaDeviceProp properties{};
  const cudaError_t got = counted == cudaSuccess ? cudaGetDeviceProperties(&properties, options.device) : counted;
  if (got != cudaSuccess) {
    cudaGetLastError();
    return {Code::device_failed, cudaGetErrorName(got)};
  }
  if (!supported(properties.major, properties.minor)) return {Code::unsupported, "compute capability"};
  auto engine = std::make_shared<Engine>(options.device, options.precision, properties.major >= 9, options.streams);
  StreamLock stream(*engine);
  DESAP_TRY(stream.take());  // what is missing shows here, not at the first image
  *context = new Context{engine};
  return {};
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "context"};
}

void context_destroy(Context* context) { delete context; }

}  // namespace desap::cuda
