// y_i = (x_i - mean(x_i)) / sqrt(var(x_i) + epsilon) * weight + bias
// normalize: the same, or rms_norm, without the affine part
//
// A row in the registers of one block: mean, then the variance of the centred values (the one-pass formula E[x^2] -
// mean^2 cancels when the mean is large), then the output.
#include <vector>

#include "kernel_run.h"
#include "kernels.cuh"
#include "row.cuh"

namespace desap::cuda {

namespace {

struct Shared {
  RowScratch mean, variance, squares;
};

// x = (x - mean) / sqrt(var + epsilon), or of an rms norm x / sqrt(mean square + epsilon). False where the statistics are not
// finite.
template <bool rms>
__device__ __forceinline__ bool normalize_row(Row& row, int width, float epsilon, Shared& shared) {
  const float size = static_cast<float>(width);
  if constexpr (!rms) {
    const float mean = sum_row(row, shared.mean) / size;
    map_row(row, width, [&](float x, int) { return x - mean; });
  }
  const float variance = sum_squares(row, shared.variance) / size;
  const float scale = 1.0f / sqrtf(variance + epsilon);
  map_row(row, width, [&](float x, int) { return x * scale; });
  return variance < infinity();   // NaN is not; an infinite mean gives an infinite or NaN variance
}

__global__ void __launch_bounds__(max_row_threads)
    layer_norm_kernel(ConstMatrix x, const float* weight, const float* bias, float epsilon, Matrix y, int* fault) {
  auto& shared = ptx::shared<Shared>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t i = blockIdx.x;
  const int width = static_cast<int>(x.cols);
  Row row;
  load_row(row, x.data + i * x.ld, width);
  if (!normalize_row<false>(row, width, epsilon, shared)) {
    if (threadIdx.x == 0) atomicMin(fault, static_cast<int>(i));
    return;
  }
  map_row(row, width, [&](float normal, int j) { return fmaf(normal, weight[j], bias[j]); });
  store_row(row, y.data + i * y.ld, width);
}

template <Precision precision, bool rms>
__global__ void __launch_bounds__(max_row_threads) normalize_kernel(Normalize n) {
  auto& shared = ptx::shared<Shared>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  stamp(n.stamp);
  const Image& image = n.images[blockIdx.y];
  const int i = static_cast<int>(blockIdx.x);
  if (i >= image.rows) return;
  const int64_t start = static_cast<int64_t>(i) * n.width;
  Row row;
  if (n.half) {
    load_row(row, static_cast<const uint16_t*>(image.hidden) + start, n.width);
  } else {
    load_row(row, static_cast<const float*>(image.hidden) + start, n.width);
  }

  bool finite = true;
  const int p = i - (n.class_token ? 1 : 0);
  float* features = n.features.get();
  if (p >= 0 && features) {
    const int64_t place = image.patch + p;
    store_row(row, features + place * n.width, n.width);
    const float squares = sum_squares(row, shared.squares);
    finite = squares < infinity();
    if (threadIdx.x == 0) n.inverse_norm.get()[place] = squares > 0 ? 1.0f / sqrtf(squares) : 0;
  }
  finite = normalize_row<rms>(row, n.width, n.epsilon, shared) && finite;
  if (!finite && threadIdx.x == 0) atomicMin(n.fault, image.row + i);
  const int64_t to = (image.row + static_cast<int64_t>(i)) * n.normal.ld;
  store_row<precision>(row, {n.normal.hi + to, n.normal.lo + to, n.normal.ld});
}

}  // namespace

void layer_norm(Queue& queue, ConstMatrix x, const float* weight, const float* bias, float epsilon, Matrix y,
                int* fault) {
  launch(queue, layer_norm_kernel, dim3(static_cast<unsigned>(x.rows)), row_threads(x.cols), sizeof(Shared), x, weight,
         bias, epsilon, y, fault);
}

void normalize(Queue& queue, Precision precision, const Normalize& n) {
  const dim3 grid(static_cast<unsigned>(n.extent.max_rows), static_cast<unsigned>(n.extent.images));
  with_precision(precision, [&](auto constant) {
    constexpr Precision at = decltype(constant)::value;
    launch(queue, n.rms ? normalize_kernel<at, true> : normalize_kernel<at, false>, grid, row_threads(n.normal.ld), sizeof(Shared), n);
  });
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::with_run;

Status layer_norm(Context& context, ConstMatrix x, const float* weight, const float* bias, float epsilon, Matrix y) {
  if (x.cols > cuda::widest_row) return {Code::unsupported, "x of more than 16384 columns"};
  return with_run(context, "layer_norm", [&](KernelRun& run) -> Status {
    const Matrix rows = run.upload(x);
    const auto vector = [&](const float* given, float otherwise) {
      return given ? run.upload(given, x.cols) : run.upload(std::vector<float>(x.cols, otherwise).data(), x.cols);
    };
    const float *gamma = vector(weight, 1), *beta = vector(bias, 0);
    int* fault = run.fault();
    cuda::layer_norm(run.queue(), rows, gamma, beta, epsilon, rows, fault);
    DESAP_TRY(run.check(fault, "x"));
    run.download(rows, y);
    return run.wait();
  });
}

}  // namespace desap
