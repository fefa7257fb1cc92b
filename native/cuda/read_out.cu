// A_d[i] = unit(rstd_i P'_i + shift),  rstd_i = 1 / sqrt(sum of squares / D + epsilon)
//
// and its row for the image: the class token's, or the normalised mean of all rows, whose sum goes in two steps: blocks
// of 128 rows from the image's first on, in order, then the blocks in order.
#include "kernel_run.h"
#include "kernels.cuh"
#include "row.cuh"

namespace desap::cuda {

namespace {

constexpr int block_rows = 128;      // rows in a partial sum
constexpr int block_columns = 128;   // columns, one a thread

__global__ void __launch_bounds__(max_row_threads) folded_read_out_kernel(FoldedReadOut e) {
  auto& scratch = ptx::shared<RowScratch>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  stamp(e.stamp);
  const Image& image = e.images[blockIdx.y];
  if (static_cast<int>(blockIdx.x) >= image.rows) return;
  const int64_t i = image.row + static_cast<int64_t>(blockIdx.x);
  Row row;
  load_row(row, e.projected.data + i * e.projected.ld, e.projection_dim);

  float squares = 0;   // the same in every warp
  for (int s = static_cast<int>(threadIdx.x) % warp_size; s < e.slices; s += warp_size) {
    squares += e.squares[i * e.slices + s];
  }
  squares = reduce_warp(squares, Sum());
  const float rstd = 1.0f / sqrtf(squares / static_cast<float>(e.width) + e.epsilon);
  map_row(row, e.projection_dim, [&](float projected, int j) { return fmaf(rstd, projected, e.shift[j]); });
  const float norm = sqrtf(sum_squares(row, scratch));
  if (!(squares < infinity() && norm < infinity()) && threadIdx.x == 0) atomicMin(e.fault, static_cast<int>(i));
  const float scale = 1.0f / fmaxf(norm, 1e-12f);
  map_row(row, e.projection_dim, [&](float v, int) { return v * scale; });
  store_row(row, e.embeddings.get() + i * e.projection_dim, e.projection_dim);
  if (e.class_token && blockIdx.x == 0) {
    store_row(row, e.global.get() + static_cast<int64_t>(blockIdx.y) * e.projection_dim, e.projection_dim);
  }
}

int64_t blocks_per_image(const Extent& extent) { return blocks_of(extent.max_rows, block_rows); }

// scratch[image, block, column] = sum of the block's rows.
__global__ void __launch_bounds__(block_columns) sum_blocks_kernel(FoldedReadOut e) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const Image& image = e.images[blockIdx.z];
  const int first = static_cast<int>(blockIdx.y) * block_rows;
  if (first >= image.rows) return;
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (column >= e.projection_dim) return;
  const float* x = e.embeddings.get() + (image.row + static_cast<int64_t>(first)) * e.projection_dim + column;
  const int rows = min(block_rows, image.rows - first);
  float sum = 0;
#pragma unroll 8
  for (int i = 0; i < rows; i++) sum += x[static_cast<int64_t>(i) * e.projection_dim];
  e.scratch[(static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * e.projection_dim + column] = sum;
}

// global[image] = unit(sum of the image's blocks / rows).
__global__ void __launch_bounds__(max_row_threads) mean_kernel(FoldedReadOut e, int64_t blocks_per_image) {
  auto& scratch = ptx::shared<RowScratch>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const Image& image = e.images[blockIdx.x];
  const float* sums = e.scratch + blockIdx.x * blocks_per_image * e.projection_dim;
  const int blocks = (image.rows + block_rows - 1) / block_rows;
  const float rows = static_cast<float>(image.rows);
  Row row;
  load_sum(row, sums, blocks, e.projection_dim);
  map_row(row, e.projection_dim, [&](float sum, int) { return sum / rows; });
  const float norm = sqrtf(sum_squares(row, scratch));
  const float scale = 1.0f / fmaxf(norm, 1e-12f);
  map_row(row, e.projection_dim, [&](float v, int) { return v * scale; });
  store_row(row, e.global.get() + static_cast<int64_t>(blockIdx.x) * e.projection_dim, e.projection_dim);
}

}  // namespace

int64_t folded_read_out_scratch(const Extent& extent, int projection_dim, bool class_token) {
  return class_token ? 0 : extent.images * blocks_per_image(extent) * projection_dim;
}

void folded_read_out(Queue& queue, const FoldedReadOut& e) {
  const unsigned images = static_cast<unsigned>(e.extent.images);
  launch(queue, folded_read_out_kernel, dim3(static_cast<unsigned>(e.extent.max_rows), images), row_threads(e.projection_dim),
         sizeof(RowScratch), e);
  if (!e.class_token) unit_mean(queue, e);
}

void unit_mean(Queue& queue, const FoldedReadOut& e) {
  const unsigned images = static_cast<unsigned>(e.extent.images);
  const int64_t blocks = blocks_per_image(e.extent);
  launch(queue, sum_blocks_kernel, dim3(blocks_of(e.projection_dim, block_columns), static_cast<unsigned>(blocks), images),
         block_columns, 0, e);
  launch(queue, mean_kernel, dim3(images), row_threads(e.projection_dim), sizeof(RowScratch), e, blocks);
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::with_run;

Status read_out(Context& context, ConstMatrix context_rows, const ReadOut& weights, Matrix attention, Matrix embeddings) {
  if (attention.cols > cuda::widest_row) return {Code::unsupported, "context of more than 16384 columns"};
  if (embeddings.cols > cuda::widest_row) return {Code::unsupported, "visualProjection of more than 16384 rows"};
  return with_run(context, "read_out", [&](KernelRun& run) -> Status {
    const Matrix in = run.upload(context_rows), attended = run.matrix(attention.rows, attention.cols);
    const Matrix normal = run.matrix(attention.rows, attention.cols), out = run.matrix(embeddings.rows, embeddings.cols);
    const float* gamma = run.upload(weights.post_norm_weight, attention.cols);
    const float* beta = run.upload(weights.post_norm_bias, attention.cols);
    int *norm_fault = run.fault(), *unit_fault = run.fault();
    DESAP_TRY(cuda::multiply(run, in, *weights.out, attended));
    cuda::layer_norm(run.queue(), attended, gamma, beta, weights.epsilon, normal, norm_fault);
    DESAP_TRY(run.check(norm_fault, "x"));
    DESAP_TRY(cuda::multiply(run, normal, *weights.visual_projection, out));
    cuda::unit_rows(run.queue(), out, out, unit_fault);
    DESAP_TRY(run.check(unit_fault, "x"));
    run.download(attended, attention);
    run.download(out, embeddings);
    return run.wait();
  });
}

}  // namespace desap
