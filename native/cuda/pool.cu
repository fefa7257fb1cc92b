// means[u] = mean of the scores of u's members, a thread a unit. The members of each unit are listed on the host, in ascending
// order: so the sum has one order, and no unit waits for another.
#include <vector>

#include "kernel_run.h"
#include "kernels.cuh"
#include "ptx.cuh"

namespace desap::cuda {

namespace {

constexpr int threads = 128;

__global__ void __launch_bounds__(threads)
    pool_kernel(const float* scores, const int* begin, const int* member, int64_t units, float* means) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t u = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (u >= units) return;
  const int first = begin[u], end = begin[u + 1];
  float sum = 0;
  for (int i = first; i < end; i++) sum += scores[member[i]];
  means[u] = sum / static_cast<float>(end - first);
}

}  // namespace

void pool(Queue& queue, const float* scores, const int* begin, const int* member, int64_t units, float* means) {
  launch(queue, pool_kernel, dim3(blocks_of(units, threads)), threads, 0, scores, begin, member, units, means);
}

void pool(KernelRun& run, const float* scores, const int32_t* unit, int64_t size, int64_t units, float* means) {
  std::vector<int> begin(static_cast<size_t>(units + 1)), member(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; i++) begin[static_cast<size_t>(unit[i]) + 1]++;
  for (size_t u = 0; u < static_cast<size_t>(units); u++) begin[u + 1] += begin[u];
  std::vector<int> next = begin;
  for (int64_t i = 0; i < size; i++) member[static_cast<size_t>(next[static_cast<size_t>(unit[i])]++)] = static_cast<int>(i);
  const int *device_begin = run.upload(begin.data(), units + 1), *device_member = run.upload(member.data(), size);
  pool(run.queue(), scores, device_begin, device_member, units, means);
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::with_run;

Status pool(Context& context, const float* scores, const int32_t* unit, int64_t size, int64_t units, float* means) {
  return with_run(context, "pool", [&](KernelRun& run) -> Status {
    float* out = run.array<float>(units);
    cuda::pool(run, run.upload(scores, size), unit, size, units, out);
    run.download(out, units, means);
    return run.wait();
  });
}

}  // namespace desap
