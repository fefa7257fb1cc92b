// SigLIP's pooling head: each row as a sequence of one row, and all rows as one sequence for the global vector.
//
//   h = layer_norm(attention);  p_hj = 2^(s_hj - shift_h) / total_h,  s_hj = log2 e / sqrt(dh) query_h . key(h_j)_h
//   v_i = value(h_i), and behind them v_N = sum_j p_j v_j, head by head;  z = out(v)
//   embeddings_i = unit(z_i + fc2 gelu(fc1 layer_norm(z_i)))
//
// The vector that the probe gathers goes on as one more row. What lies behind is computed for a few rows at a time: fc1 may be
// many times wider than a row.
#include <algorithm>

#include "kernel_run.h"
#include "kernels.cuh"
#include "row.cuh"

namespace desap::cuda {

namespace {

constexpr int threads = 256, warps = threads / warp_size;
constexpr int block_rows = 128;         // rows in a partial sum
constexpr int64_t rows_at_once = 1024;  // behind `out`
constexpr float log2_e = 1.4426950408889634f;

struct Probe {
  const float* query;   // [D]
  ConstMatrix keys;     // [N, D]
  int heads;
  float scale;
  float* weights;       // [heads, N]: s, then p
};

// A warp a row.
__global__ void __launch_bounds__(threads) probe_scores(Probe probe) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * warps + warp;
  if (row >= probe.keys.rows) return;
  const int size = static_cast<int>(probe.keys.cols) / probe.heads;
  const float* key = probe.keys.data + row * probe.keys.ld;
  for (int head = 0; head < probe.heads; head++) {
    float sum = 0;
    for (int c = head * size + lane; c < (head + 1) * size; c += warp_size) sum = fmaf(probe.query[c], key[c], sum);
    sum = reduce_warp(sum, Sum());
    if (lane == 0) probe.weights[head * probe.keys.rows + row] = sum * probe.scale;
  }
}

struct SoftmaxShared {
  float largest[warps], sum[warps];
};

// A block a head.
__global__ void __launch_bounds__(threads) probe_softmax(Probe probe) {
  auto& shared = ptx::shared<SoftmaxShared>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t rows = probe.keys.rows;
  float* weights = probe.weights + blockIdx.x * rows;
  float shift = -INFINITY, total = 0;
  for (int64_t j = threadIdx.x; j < rows; j += threads) shift = fmaxf(shift, weights[j]);
  shift = reduce_block(shift, shared.largest, Largest());
  for (int64_t j = threadIdx.x; j < rows; j += threads) total += weights[j] = ptx::exp2(weights[j] - shift);
  total = reduce_block(total, shared.sum, Sum());
  for (int64_t j = threadIdx.x; j < rows; j += threads) weights[j] /= total;
}

// saliency[j] = mean over the heads of p_hj.
__global__ void __launch_bounds__(threads) probe_saliency(Probe probe, float* saliency) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t rows = probe.keys.rows, j = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (j >= rows) return;
  float sum = 0;
  for (int head = 0; head < probe.heads; head++) sum += probe.weights[head * rows + j];
  saliency[j] = sum / static_cast<float>(probe.heads);
}

// partial[block, column] = sum over the block's rows j of p_hj values[j, column], h the column's head.
__global__ void __launch_bounds__(threads) gather_blocks(Probe probe, ConstMatrix values, float* partial) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int column = static_cast<int>(blockIdx.x * threads + threadIdx.x);
  if (column >= values.cols) return;
  const int64_t rows = probe.keys.rows, first = static_cast<int64_t>(blockIdx.y) * block_rows;
  const int64_t end = first + block_rows < rows ? first + block_rows : rows;
  const float* weights = probe.weights + column / (static_cast<int>(values.cols) / probe.heads) * rows;
  float sum = 0;
  for (int64_t j = first; j < end; j++) sum = fmaf(weights[j], values.data[j * values.ld + column], sum);
  partial[blockIdx.y * values.cols + column] = sum;
}

__global__ void __launch_bounds__(threads) gather_all(const float* partial, int blocks, int width, float* to) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int column = static_cast<int>(blockIdx.x * threads + threadIdx.x);
  if (column >= width) return;
  float sum = 0;
  for (int block = 0; block < blocks; block++) sum += partial[static_cast<int64_t>(block) * width + column];
  to[column] = sum;
}

// x = x (1 + tanh(t)) / 2 = x / (1 + e^(-2t)),  t = sqrt(2 / pi) (x + 0.044715 x^3). In this form nothing cancels.
__global__ void __launch_bounds__(threads) gelu_kernel(float* x, int64_t size) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i >= size) return;
  constexpr float factor = -2 * 0.79788456080286535588f * log2_e;
  const float value = x[i], t = fmaf(0.044715f * value * value, value, value);
  x[i] = value / (1 + ptx::exp2(factor * t));
}

// x = unit(x + y)
__global__ void __launch_bounds__(max_row_threads) unit_sums_kernel(Matrix x, ConstMatrix y, int* fault) {
  auto& scratch = ptx::shared<RowScratch>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t i = blockIdx.x;
  const int width = static_cast<int>(x.cols);
  const float* other = y.data + i * y.ld;
  Row row;
  load_row(row, x.data + i * x.ld, width);
  map_row(row, width, [&](float v, int j) { return v + other[j]; });
  const float norm = sqrtf(sum_squares(row, scratch));
  if (!(norm < infinity()) && threadIdx.x == 0) atomicMin(fault, static_cast<int>(i));
  const float scale = 1.0f / fmaxf(norm, 1e-12f);
  map_row(row, width, [&](float v, int) { return v * scale; });
  store_row(row, x.data + i * x.ld, width);
}

// p of all heads and its mean, and values.row(N) = sum_j p_j v_j.
void gather(KernelRun& run, const SiglipReadOut& weights, ConstMatrix keys, Matrix values, float* saliency) {
  const int64_t rows = keys.rows, width = keys.cols;
  const float size = static_cast<float>(width / weights.heads);
  const Probe probe{weights.query, keys, static_cast<int>(weights.heads), log2_e / sqrtf(size), run.array<float>(weights.heads * rows)};
  const unsigned blocks = blocks_of(rows, block_rows), columns = blocks_of(width, threads);
  float* partial = run.array<float>(blocks * width);
  Queue& queue = run.queue();
  launch(queue, probe_scores, dim3(blocks_of(rows, warps)), threads, 0, probe);
  launch(queue, probe_softmax, dim3(static_cast<unsigned>(weights.heads)), threads, sizeof(SoftmaxShared), probe);
  launch(queue, probe_saliency, dim3(blocks_of(rows, threads)), threads, 0, probe, saliency);
  launch(queue, gather_blocks, dim3(columns, blocks), threads, 0, probe, values, partial);
  launch(queue, gather_all, dim3(columns), threads, 0, partial, static_cast<int>(blocks), static_cast<int>(width), values.row(rows));
}

// Rows [first, first + count) of a matrix.
Matrix rows_of(const Matrix& x, int64_t first, int64_t count) { return {x.row(first), count, x.cols, x.ld}; }

}  // namespace

Status siglip_read_out(KernelRun& run, ConstMatrix attention, const SiglipReadOut& weights, Matrix embeddings, float* saliency) {
  const int64_t rows = attention.rows, width = attention.cols, hidden = width_of(*weights.fc1);
  Queue& queue = run.queue();
  const auto check = [&](const int* fault, int64_t first) -> Status {
    Status status = run.check(fault, "x");
    if (status.code == Code::not_finite) status.where += first;
    return status;
  };
  {
    const KernelRun::Scope scope(run);
    const Matrix normal = run.matrix(rows, width), values = run.matrix(rows + 1, width);
    int* fault = run.fault();
    layer_norm(queue, attention, weights.post_norm_weight, weights.post_norm_bias, weights.epsilon, normal, fault);
    DESAP_TRY(check(fault, 0));
    DESAP_TRY(multiply(run, normal, *weights.value, rows_of(values, 0, rows)));
    const Matrix keys = rows_of(embeddings, 0, rows);  // until z comes there
    DESAP_TRY(multiply(run, normal, *weights.key, keys));
    gather(run, weights, keys, values, saliency);
    DESAP_TRY(multiply(run, values, *weights.out, embeddings));
  }
  for (int64_t first = 0; first <= rows; first += rows_at_once) {
    const KernelRun::Scope scope(run);
    const Matrix z = rows_of(embeddings, first, std::min(rows_at_once, rows + 1 - first));
    const Matrix normal = run.matrix(z.rows, width), wide = run.matrix(z.rows, hidden);
    int* fault = run.fault();
    layer_norm(queue, z, weights.norm_weight, weights.norm_bias, weights.epsilon, normal, fault);
    DESAP_TRY(multiply(run, normal, *weights.fc1, wide));
    launch(queue, gelu_kernel, dim3(blocks_of(z.rows * hidden, threads)), threads, 0, wide.data, z.rows * hidden);
    DESAP_TRY(multiply(run, wide, *weights.fc2, normal));
    launch(queue, unit_sums_kernel, dim3(static_cast<unsigned>(z.rows)), row_threads(width), sizeof(RowScratch), z, normal, fault);
    DESAP_TRY(check(fault, first));
  }
  return {};
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::with_run;

Status siglip_read_out(Context& context, ConstMatrix attention, const SiglipReadOut& weights, Matrix embeddings, float* global,
                       float* saliency) {
  const int64_t rows = attention.rows, width = attention.cols;
  if (width > cuda::widest_row) return {Code::unsupported, "attention of more than 16384 columns"};
  return with_run(context, "siglip_read_out", [&](KernelRun& run) -> Status {
    SiglipReadOut on_device = weights;
    for (const float** vector : {&on_device.post_norm_weight, &on_device.post_norm_bias, &on_device.query, &on_device.norm_weight,
                                 &on_device.norm_bias}) {
      *vector = run.upload(*vector, width);
    }
    const Matrix all = run.matrix(rows + 1, width);
    float* probe = run.array<float>(rows);
    DESAP_TRY(cuda::siglip_read_out(run, run.upload(attention), on_device, all, probe));
    run.download({all.data, rows, width, width}, embeddings);
    run.download(all.row(rows), width, global);
    run.download(probe, rows, saliency);
    return run.wait();
  });
}

}  // namespace desap
