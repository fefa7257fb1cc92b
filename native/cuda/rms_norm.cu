// y_i = x_i / sqrt(mean(x_i^2) + epsilon) * weight, a row in the registers of one block.
#include <vector>

#include "kernel_run.h"
#include "kernels.cuh"
#include "row.cuh"

namespace desap::cuda {

namespace {

__global__ void __launch_bounds__(max_row_threads)
    rms_norm_kernel(ConstMatrix x, const float* weight, float epsilon, Matrix y, int* fault) {
  auto& scratch = ptx::shared<RowScratch>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t i = blockIdx.x;
  const int width = static_cast<int>(x.cols);
  Row row;
  load_row(row, x.data + i * x.ld, width);
  const float mean_square = sum_squares(row, scratch) / static_cast<float>(width);
  if (!(mean_square < infinity())) {
    if (threadIdx.x == 0) atomicMin(fault, static_cast<int>(i));
    return;
  }
  const float scale = 1.0f / sqrtf(mean_square + epsilon);
  map_row(row, width, [&](float v, int j) { return v * scale * weight[j]; });
  store_row(row, y.data + i * y.ld, width);
}

}  // namespace

void rms_norm(Queue& queue, ConstMatrix x, const float* weight, float epsilon, Matrix y, int* fault) {
  launch(queue, rms_norm_kernel, dim3(static_cast<unsigned>(x.rows)), row_threads(x.cols), sizeof(RowScratch), x, weight,
         epsilon, y, fault);
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::with_run;

Status rms_norm(Context& context, ConstMatrix x, const float* weight, float epsilon, Matrix y) {
  if (x.cols > cuda::widest_row) return {Code::unsupported, "x of more than 16384 columns"};
  return with_run(context, "rms_norm", [&](KernelRun& run) -> Status {
    const Matrix rows = run.upload(x);
    const float* gamma = weight ? run.upload(weight, x.cols) : run.upload(std::vector<float>(x.cols, 1.0f).data(), x.cols);
    int* fault = run.fault();
    cuda::rms_norm(run.queue(), rows, gamma, epsilon, rows, fault);
    DESAP_TRY(run.check(fault, "x"));
    run.download(rows, y);
    return run.wait();
  });
}

}  // namespace desap
