// y = scale (x W^T) + bias on the tensor cores.
//
// A block computes one tile of y in steps of 32 along `in`: cp.async brings the rows of x and W of several steps ahead
// into shared memory while the warps multiply what has arrived. Each element of y is one chain of products in one
// accumulator, in ascending order of k, whatever the tile: the same bits for every batch and every place in it.
//
// The weights are read before the preceding kernels have ended: they are constants, complete before the launch.
#include <cmath>
#include <vector>

#include "kernel_run.h"
#include "linear.cuh"
#include "multiply.cuh"
#include "reduce.cuh"
#include "weights.h"

namespace desap::cuda {

namespace {

// Copies this thread's chunks of a step: the same chunk of rows that lie rows_per_pass apart in shared memory.
template <Precision precision, class Tile>
struct Copier {
  using Ring = Steps<Tile, precision>;
  static constexpr int row_chunks = Ring::row_chunks;
  static constexpr int rows_per_pass = Tile::threads / row_chunks;
  static_assert(rows_per_pass % 8 == 0 && Tile::rows % rows_per_pass == 0 && Tile::columns % rows_per_pass == 0);

  int row, place;
  int64_t x_rows, weight_rows;        // how many rows there are from this thread's first one on
  int64_t x_ld, weight_ld;
  const uint16_t *x, *weight;         // this thread's chunk of its first row at step 0

  __device__ __forceinline__ Copier(const Product& product, int64_t first_row, int first_column) {
    const int thread = static_cast<int>(threadIdx.x);
    const int chunk = thread % row_chunks;
    row = thread / row_chunks;
    place = place_of<row_chunks>(row, chunk);
    constexpr int plane_chunks = step_size / chunk_size;
    const bool low = chunk >= plane_chunks;
    const int element = chunk % plane_chunks * chunk_size;
    x_ld = product.x.ld;
    weight_ld = product.weights.weight.ld;
    x_rows = product.rows - first_row - row;
    weight_rows = product.weights.out - first_column - column_of(row);
    x = (low ? product.x.lo : product.x.hi) + element;
    weight = (low ? product.weights.weight.lo : product.weights.weight.hi) + element;
    if (x_rows > 0) x += (first_row + row) * x_ld;
    if (weight_rows > 0) weight += (first_column + column_of(row)) * weight_ld;
  }

  __device__ __forceinline__ void copy_x(typename Ring::Step& to, int step) const {
#pragma unroll
    for (int pass = 0; pass < Tile::rows / rows_per_pass; pass++) {
      const int further = pass * rows_per_pass;
      const bool valid = further < x_rows;
      ptx::copy_async(&to.x[place + further * row_chunks], x + (valid ? further * x_ld : 0) + step * step_size, valid);
    }
  }
  __device__ __forceinline__ void copy_weight(typename Ring::Step& to, int step) const {
#pragma unroll
    for (int pass = 0; pass < Tile::columns / rows_per_pass; pass++) {
      const int further = column_of(pass * rows_per_pass);   // column_of(row + ..) = column_of(row) + column_of(..)
      const bool valid = further < weight_rows;
      ptx::copy_async(&to.weight[place + pass * rows_per_pass * row_chunks],
                      weight + (valid ? further * weight_ld : 0) + step * step_size, valid);
    }
  }
};

constexpr int column_fragments = SmallTile::warp_columns / 8;

// Fragments of 16 elements along `in`, from `row` and `chunk`, which differ from lane to lane (fragments.cuh).
template <int row_chunks, int row_fragments>
__device__ __forceinline__ void load_x(uint32_t (&x)[row_fragments][4], const Chunk* rows, int row, int chunk) {
#pragma unroll
  for (int m = 0; m < row_fragments; m++) {
    ptx::load_matrices(x[m], &rows[place_of<row_chunks>(row, chunk) + m * 16 * row_chunks]);
  }
}
template <int row_chunks>
__device__ __forceinline__ void load_weight(uint32_t (&weight)[column_fragments][2], const Chunk* rows, int row,
                                            int chunk) {
#pragma unroll
  for (int n = 0; n < column_fragments; n += 2) {
    uint32_t r[4];
    ptx::load_matrices(r, &rows[place_of<row_chunks>(row, chunk) + n * 8 * row_chunks]);
    weight[n][0] = r[0], weight[n][1] = r[1];
    weight[n + 1][0] = r[2], weight[n + 1][1] = r[3];
  }
}
template <Precision precision, int row_fragments>
__device__ __forceinline__ void multiply_all(float (&sum)[row_fragments][column_fragments][4],
                                             const uint32_t (&x)[row_fragments][4],
                                             const uint32_t (&weight)[column_fragments][2]) {
#pragma unroll
  for (int m = 0; m < row_fragments; m++) {
#pragma unroll
    for (int n = 0; n < column_fragments; n++) multiply_planes<precision>(sum[m][n], x[m], weight[n]);
  }
}

// One step: hi hi, and in fp32 hi lo and lo hi, of each 16 elements.
template <Precision precision, class Tile>
__device__ __forceinline__ void multiply_step(float (&sum)[Tile::warp_rows / 16][column_fragments][4],
                                              const typename Steps<Tile, precision>::Step& step, int warp_row,
                                              int warp_column, int lane) {
  constexpr int row_chunks = Steps<Tile, precision>::row_chunks;
  constexpr int plane_chunks = step_size / chunk_size;
  const int x_row = warp_row + a_row(lane), weight_row = warp_column + b_row(lane);
#pragma unroll
  for (int chunk = 0; chunk < plane_chunks; chunk += 2) {
    uint32_t x[Tile::warp_rows / 16][4], weight[column_fragments][2];
    load_x<row_chunks>(x, step.x, x_row, chunk + a_chunk(lane));
    load_weight<row_chunks>(weight, step.weight, weight_row, chunk + b_chunk(lane));
    multiply_all<precision>(sum, x, weight);
    if constexpr (precision == Precision::fp32) {
      uint32_t low[column_fragments][2];
      load_weight<row_chunks>(low, step.weight, weight_row, plane_chunks + chunk + b_chunk(lane));
      multiply_all<precision>(sum, x, low);
      load_x<row_chunks>(x, step.x, x_row, plane_chunks + chunk + a_chunk(lane));
      multiply_all<precision>(sum, x, weight);
    }
  }
}

// The first `columns` of 8 consecutive ones of a float32 row, from y on.
__device__ __forceinline__ void store_some(float* y, int columns, const float (&value)[8]) {
  if (columns >= 8 && reinterpret_cast<uintptr_t>(y) % 16 == 0) {
    reinterpret_cast<float4*>(y)[0] = make_float4(value[0], value[1], value[2], value[3]);
    reinterpret_cast<float4*>(y)[1] = make_float4(value[4], value[5], value[6], value[7]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (i < columns) y[i] = value[i];
    }
  }
}

// The end of a warp's part of the tile, whose columns begin at `slice`; this lane's rows are first_row + 8 i.
template <Precision precision, class Tile>
__device__ __forceinline__ void finish(const Product& product,
                                       const float (&sum)[Tile::warp_rows / 16][column_fragments][4], int64_t first_row,
                                       int slice, int lane) {
  constexpr int row_fragments = Tile::warp_rows / 16;
  const Weights& weights = product.weights;
  const bool squared = slice < product.squared;
  float squares[row_fragments][2] = {};
#pragma unroll
  for (int group = 0; group < column_fragments / 4; group++) {
    const int column = slice + group * 32 + lane % 4 * 8;
    const int columns = weights.out - column;
    float scale[8], bias[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      scale[i] = i < columns ? weights.scale[column + i] : 0;
      bias[i] = i < columns && weights.bias ? weights.bias[column + i] : 0;
    }
#pragma unroll
    for (int m = 0; m < row_fragments; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int64_t row = first_row + m * 16 + half * 8;
        float value[8];
#pragma unroll
        for (int i = 0; i < 8; i++) value[i] = fmaf(sum[m][group * 4 + i / 2][half * 2 + i % 2], scale[i], bias[i]);
        if (squared) {
#pragma unroll
          for (int i = 0; i < 8; i++) squares[m][half] = fmaf(value[i], value[i], squares[m][half]);
        } else if (row < product.rows && columns > 0) {
          if (product.operand.hi) {
            store<precision>(product.operand, row, column, value);
          } else {
            store_some(product.values.data + row * product.values.ld + column - product.squared, columns, value);
          }
        }
      }
    }
  }
  if (!squared) return;
#pragma unroll
  for (int m = 0; m < row_fragments; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int64_t row = first_row + m * 16 + half * 8;
      const float total = reduce_warp<4>(squares[m][half], Sum());
      if (row < product.rows && lane % 4 == 0) {
        product.squares[row * (product.squared / Tile::warp_columns) + slice / Tile::warp_columns] = total;
      }
    }
  }
}

template <Precision precision, class Tile>
__global__ void __launch_bounds__(Tile::threads) multiply_rows_kernel(Product product) {
  using Ring = Steps<Tile, precision>;
  auto& ring = ptx::shared<Ring>();
  const Weights& weights = product.weights;
  // Neighbouring blocks share their rows of x: W stays in the L2 cache anyway, x of a large batch does not.
  const int across = (weights.out + Tile::columns - 1) / Tile::columns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) / across * Tile::rows;
  const int first_column = static_cast<int>(blockIdx.x) % across * Tile::columns;
  const Copier<precision, Tile> copier(product, first_row, first_column);
  const int steps = weights.in / step_size;

#pragma unroll
  for (int s = 0; s < Ring::count - 1; s++) {
    if (s < steps) copier.copy_weight(ring.step[s], s);
  }
  ptx::wait_for_predecessor();
  ptx::release_successor();
  stamp(product.stamp);
#pragma unroll
  for (int s = 0; s < Ring::count - 1; s++) {
    if (s < steps) copier.copy_x(ring.step[s], s);
    ptx::copy_commit();
  }

  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32, warp = thread / 32;
  const int warp_row = warp / Tile::warps_across * Tile::warp_rows;
  const int warp_column = warp % Tile::warps_across * Tile::warp_columns;
  float sum[Tile::warp_rows / 16][column_fragments][4] = {};
  int now = 0, next = Ring::count - 1;   // places in the ring
  for (int s = 0; s < steps; s++) {
    ptx::copy_wait<Ring::count - 2>();
    __syncthreads();   // step s is complete, and nobody reads step s - 1 any more, whose place is free
    if (s + Ring::count - 1 < steps) {
      copier.copy_weight(ring.step[next], s + Ring::count - 1);
      copier.copy_x(ring.step[next], s + Ring::count - 1);
    }
    ptx::copy_commit();
    multiply_step<precision, Tile>(sum, ring.step[now], warp_row, warp_column, lane);
    now = now + 1 == Ring::count ? 0 : now + 1;
    next = next + 1 == Ring::count ? 0 : next + 1;
  }

  finish<precision, Tile>(product, sum, first_row + warp_row + lane / 4, first_column + warp_column, lane);
}

template <Precision precision, class Tile>
void launch_tiles(Queue& queue, const Product& product) {
  launch(queue, multiply_rows_kernel<precision, Tile>,
         dim3(static_cast<unsigned>(tiles_of<Tile>(product.rows, product.weights.out))), Tile::threads,
         sizeof(Steps<Tile, precision>), product);
}

}  // namespace

void multiply_rows(Queue& queue, Precision precision, TileShape shape, const Product& product) {
  with_precision(precision, [&](auto constant) {
    constexpr Precision at = decltype(constant)::value;
    shape == TileShape::large ? launch_tiles<at, LargeTile>(queue, product) : launch_tiles<at, SmallTile>(queue, product);
  });
}

namespace {

// Without its outputs.
Product product_of(ConstOperand x, int64_t rows, const Weights& weights, Stamp stamp) {
  Product product{};
  product.x = x;
  product.rows = rows;
  product.weights = weights;
  product.stamp = stamp;
  return product;
}

void multiply_rows(Queue& queue, Precision precision, const Product& product) {
  multiply_rows(queue, precision, tile_shape(product.rows, product.weights.out), product);
}

}  // namespace

void linear(Queue& queue, Precision precision, ConstOperand x, int64_t rows, const Weights& weights, Operand y,
            Stamp stamp) {
  Product product = product_of(x, rows, weights, stamp);
  product.operand = y;
  multiply_rows(queue, precision, product);
}

void linear(Queue& queue, Precision precision, ConstOperand x, int64_t rows, const Weights& weights, Matrix y,
            Stamp stamp) {
  Product product = product_of(x, rows, weights, stamp);
  product.values = y;
  multiply_rows(queue, precision, product);
}

void linear_squares(Queue& queue, Precision precision, ConstOperand x, int64_t rows, const Weights& weights,
                    int squared, float* squares, Matrix y, Stamp stamp) {
  Product product = product_of(x, rows, weights, stamp);
  product.squared = squared;
  product.squares = squares;
  product.values = y;
  multiply_rows(queue, precision, product);
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::Scaled;
using cuda::with_run;

struct Linear {
  std::shared_ptr<cuda::Engine> engine;  // the GPU outlives what is on it
  cuda::PackedLayer layer;
  std::vector<float> scale;
};

Status linear_pack(Context& context, ConstMatrix weight, const float* bias, Linear** linear) try {
  cuda::HostLayer rows(weight.rows, weight.cols);
  std::vector<double> row(static_cast<size_t>(weight.cols));
  for (int64_t i = 0; i < weight.rows; i++) {
    row.assign(weight.row(i), weight.row(i) + weight.cols);
    rows.set(i, row.data(), bias ? static_cast<double>(bias[i]) : 0, 0);
  }
  auto packed = std::make_unique<Linear>();
  packed->engine = context.engine;
  packed->scale = rows.scale;
  cuda::StreamLock stream(*context.engine);
  DESAP_TRY(stream.take());
  DESAP_TRY(packed->layer.pack(*stream, context.engine->precision, rows, bias != nullptr));
  *linear = packed.release();
  return {};
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "weight"};
}

void linear_free(Linear* linear) { delete linear; }

int64_t cuda::width_of(const Linear& linear) { return linear.layer.all().out; }

Status cuda::multiply(KernelRun& run, ConstMatrix x, const Linear& linear, Matrix y) {
  const KernelRun::Scope scope(run);
  const Scaled operand = scaled(run, x, 1, static_cast<int>(padded_width(x.cols)));
  int exponent = 0;
  DESAP_TRY(run.fetch(operand.exponent, &exponent));
  std::vector<float> scale;
  for (float s : linear.scale) scale.push_back(static_cast<float>(std::ldexp(static_cast<double>(s), -exponent)));
  Weights weights = linear.layer.all();
  weights.scale = run.upload(scale.data(), weights.out);
  cuda::linear(run.queue(), run.precision(), operand.operand, x.rows, weights, y, nullptr);
  return run.wait();
}

Status linear(Context& context, ConstMatrix x, const Linear& weight, Matrix y) {
  return with_run(context, "linear", [&](KernelRun& run) -> Status {
    const Matrix in = run.upload(x), out = run.matrix(y.rows, y.cols);
    DESAP_TRY(cuda::multiply(run, in, weight, out));
    run.download(out, y);
    return run.wait();
  });
}

}  // namespace desap
