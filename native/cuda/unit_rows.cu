// y_i = x_i / max(|x_i|, 1e-12)
//
// The squares are summed in float32: a row whose elements exceed about 1e19 has no finite norm and counts as not
// finite.
#include "kernel_run.h"
#include "kernels.cuh"
#include "row.cuh"

namespace desap::cuda {

namespace {

__global__ void __launch_bounds__(max_row_threads) unit_rows_kernel(ConstMatrix x, Matrix y, int* fault) {
  auto& scratch = ptx::shared<RowScratch>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t i = blockIdx.x;
  const int width = static_cast<int>(x.cols);
  Row row;
  load_row(row, x.data + i * x.ld, width);
  const float norm = sqrtf(sum_squares(row, scratch));
  if (!(norm < infinity())) {
    if (threadIdx.x == 0) atomicMin(fault, static_cast<int>(i));
    return;
  }
  const float scale = 1.0f / fmaxf(norm, 1e-12f);
  map_row(row, width, [&](float v, int) { return v * scale; });
  store_row(row, y.data + i * y.ld, width);
}

}  // namespace

void unit_rows(Queue& queue, ConstMatrix x, Matrix y, int* fault) {
  launch(queue, unit_rows_kernel, dim3(static_cast<unsigned>(x.rows)), row_threads(x.cols), sizeof(RowScratch), x, y,
         fault);
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::with_run;

Status unit_rows(Context& context, ConstMatrix x, Matrix y) {
  if (x.cols > cuda::widest_row) return {Code::unsupported, "x of more than 16384 columns"};
  return with_run(context, "unit_rows", [&](KernelRun& run) -> Status {
    const Matrix rows = run.upload(x);
    int* fault = run.fault();
    cuda::unit_rows(run.queue(), rows, rows, fault);
    DESAP_TRY(run.check(fault, "x"));
    run.download(rows, y);
    return run.wait();
  });
}

}  // namespace desap
