// desap-cuda-check [name]: the kernels' own cases, then the cases over kernels.h and head.h at every precision, on the
// first GPU that can be used; an argument selects cases by part of their name. Writes nothing. Exit status 77, with
// the reason, where there is no GPU.
//
//   DESAP_SEED=n   data of run n again: on a GPU each run has data of its own
//   DESAP_SMALL=1  only small shapes, for compute-sanitizer (sanitize.sh)
//   DESAP_PRECISION=fp16  that precision alone; `own`: the kernels' own cases alone
#include <cstdlib>
#include <cstring>
#include <random>

#include "cuda_harness.h"

namespace desap::test {
namespace {

#ifdef DESAP_SIMT
constexpr bool emulated = true;
#else
constexpr bool emulated = false;
#endif

bool runs(const char* part) {
  const char* one = std::getenv("DESAP_PRECISION");
  return !one || std::strcmp(one, part) == 0;
}

int run(const char* wanted) {
  const cuda::Availability availability = cuda::availability();
  if (!availability.available) {
    std::printf("skipped: %s\n", availability.reason.c_str());
    return 77;
  }
  const cuda::DeviceInfo& device = availability.devices[0];
  const bool small = emulated || std::getenv("DESAP_SMALL");
  if (const char* seed = std::getenv("DESAP_SEED")) {
    data_seed = std::strtoull(seed, nullptr, 10);
  } else if (!emulated) {
    data_seed = std::random_device()();
  }
  int driver = 0;
  cudaDriverGetVersion(&driver);
  std::printf("%s, compute capability %d.%d, %.0f GiB, driver for CUDA %d.%d; %sDESAP_SEED=%llu\n", device.name.c_str(),
              device.major, device.minor, static_cast<double>(device.memory_bytes) / (1 << 30), driver / 1000,
              driver % 1000 / 10, small ? "small shapes; " : "", static_cast<unsigned long long>(data_seed));

  cuda::Queue queue;
  queue.overlap = device.major >= 9;
  queue.note(cudaSetDevice(device.index));
  queue.note(cudaStreamCreateWithFlags(&queue.stream, cudaStreamNonBlocking));
  if (runs("own")) run_cuda_cases(queue, device.name, wanted);
  cudaStreamDestroy(queue.stream);

  for (Precision precision : precisions) {
    if (runs(name_of(precision))) run_cases(machine_of(device, precision, small), wanted);
  }
  return report();
}

}  // namespace
}  // namespace desap::test

int main(int argc, char** argv) { return desap::test::run(argc > 1 ? argv[1] : nullptr); }
