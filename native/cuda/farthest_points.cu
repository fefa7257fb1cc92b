// Farthest points, a launch a step: a warp brings its row's largest cosine with the chosen rows up to date and offers the row; the
// best offer is the step's pick, which the next launch begins with. Nothing of P x P is stored.
//
// Without seeds the first step goes by the sum of the unit rows, or asks for every row's largest cosine with another: tiles of 64 x 64
// in float32. Rows are unit rows there, and a product is summed in ascending order of the columns, so cos(i, j) and cos(j, i) are the
// same bits.
#include <vector>

#include "greedy.cuh"
#include "kernel_run.h"

namespace desap::cuda {
namespace {

constexpr int side = 64, chunk = 16, stride = side + 4, own = 4;  // each thread has own x own of a tile's cosines
constexpr int tile_threads = (side / own) * (side / own);
static_assert(side * chunk == tile_threads * 4);

struct Tile {
  float rows[chunk][stride], columns[chunk][stride];
};

__global__ void __launch_bounds__(tile_threads) closest_others(const FarthestPoints f) {
  Tile& tile = ptx::shared<Tile>();
  ptx::release_successor();
  ptx::wait_for_predecessor();
  const Image image = f.images[blockIdx.z];
  const int first_row = static_cast<int>(blockIdx.x) * side, first_column = static_cast<int>(blockIdx.y) * side;
  if (image.task_keep > 0 || image.keep == 0 || first_row >= image.patches || first_column >= image.patches) return;
  const float* x = f.rows.get() + image.patch * int64_t{f.width};
  const float* norms = f.inverse_norm.get() + image.patch;
  const int thread = static_cast<int>(threadIdx.x), down = thread / (side / own) * own, across = thread % (side / own) * own;
  const int loaded = thread / 4, column = thread % 4 * 4;
  float cosines[own][own] = {};
  for (int begin = 0; begin < f.width; begin += chunk) {
    __syncthreads();
    const auto load = [&](int row, float (&to)[chunk][stride]) {
      const float norm = row < image.patches ? norms[row] : 0;
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int at = begin + column + c;
        to[column + c][loaded] = row < image.patches && at < f.width ? x[row * int64_t{f.width} + at] * norm : 0;
      }
    };
    load(first_row + loaded, tile.rows);
    load(first_column + loaded, tile.columns);
    __syncthreads();
#pragma unroll
    for (int c = 0; c < chunk; c++) {
#pragma unroll
      for (int i = 0; i < own; i++) {
#pragma unroll
        for (int j = 0; j < own; j++) cosines[i][j] = fmaf(tile.rows[c][down + i], tile.columns[c][across + j], cosines[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < own; i++) {
    const int row = first_row + down + i;
    float most = -INFINITY;
#pragma unroll
    for (int j = 0; j < own; j++) {
      const int other = first_column + across + j;
      if (other < image.patches && other != row) most = fmaxf(most, cosines[i][j]);
    }
    most = reduce_warp<side / own>(most, Largest());
    if (thread % (side / own) == 0 && row < image.patches) atomicMax(f.others + image.patch + row, in_order(most));
  }
}

// The sum of an image's unit rows, a thread a column: sum_j d(i, j) = P - u_i . sum_j u_j.
__global__ void __launch_bounds__(greedy_threads) sum_units(const FarthestPoints f) {
  ptx::release_successor();
  ptx::wait_for_predecessor();
  const Image image = f.images[blockIdx.y];
  const int column = static_cast<int>(blockIdx.x) * greedy_threads + static_cast<int>(threadIdx.x);
  if (image.task_keep > 0 || column >= f.width) return;
  const float* x = f.rows.get() + image.patch * int64_t{f.width} + column;
  const float* norms = f.inverse_norm.get() + image.patch;
  double sum = 0;
  for (int i = 0; i < image.patches; i++) sum += static_cast<double>(x[i * int64_t{f.width}]) * norms[i];
  f.sums[blockIdx.y * int64_t{f.width} + column] = static_cast<float>(sum);
}

struct Offers {
  Pick warp[greedy_warps];
};

__global__ void __launch_bounds__(greedy_threads) farthest_step(const FarthestPoints f, const int step) {
  Offers& offers = ptx::shared<Offers>();
  ptx::release_successor();
  ptx::wait_for_predecessor();
  const Image image = f.images[blockIdx.y];
  if (step >= image.keep - image.task_keep) return;
  const int i = static_cast<int>(blockIdx.x) * greedy_warps + static_cast<int>(threadIdx.x) / warp_size;
  if (static_cast<int>(blockIdx.x) * greedy_warps >= image.patches) return;
  Pick* picks = f.picks + int64_t{blockIdx.y} * f.steps;
  Pick pick = 0;
  if (i < image.patches) {
    const float* rows = f.rows.get() + image.patch * int64_t{f.width};
    const float* norms = f.inverse_norm.get() + image.patch;
    const float* row = rows + i * int64_t{f.width};
    float* closest = f.closest + image.patch + i;  // infinite: the row is chosen
    const auto with = [&](int j) { return j == i ? INFINITY : warp_dot(row, rows + j * int64_t{f.width}, f.width) * (norms[i] * norms[j]); };
    float most = step == 0 ? -INFINITY : *closest, score;
    if (step > 0) {
      if (most < INFINITY) most = fmaxf(most, with(row_of(picks[step - 1])));
      score = -most;
    } else if (image.task_keep > 0) {
      for (int s = 0; s < image.task_keep; s++) most = fmaxf(most, with(f.seeds[image.kept + s]));
      score = -most;
    } else if (f.sums) {
      score = -warp_dot(row, f.sums + blockIdx.y * int64_t{f.width}, f.width) * norms[i];
    } else {
      score = -__uint_as_float(from_order(f.others[image.patch + i]));  // infinite where there is no other row
    }
    __syncwarp();
    if (threadIdx.x % warp_size == 0) *closest = most;
    if (most < INFINITY) pick = pick_of(score, i);
  }
  offer(pick, picks + step, offers.warp);
}

// Seeds and picks in ascending order: the place of each is the number of those below it.
__global__ void __launch_bounds__(greedy_threads) sort_chosen(const FarthestPoints f) {
  ptx::release_successor();
  ptx::wait_for_predecessor();
  const Image image = f.images[blockIdx.x];
  const auto chosen = [&](int k) {
    return k < image.task_keep ? f.seeds[image.kept + k] : row_of(f.picks[int64_t{blockIdx.x} * f.steps + k - image.task_keep]);
  };
  for (int k = static_cast<int>(threadIdx.x); k < image.keep; k += greedy_threads) {
    const int row = chosen(k);
    int before = 0;
    for (int other = 0; other < image.keep; other++) before += chosen(other) < row;
    f.indices[image.kept + before] = row;
    f.source[image.kept + before] = k < image.task_keep ? 0 : 1;
  }
}

}  // namespace

void farthest_points(Queue& queue, const FarthestPoints& f) {
  const auto blank = [&](void* memory, int64_t bytes) {
    if (!queue.failed()) queue.note(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), queue.stream));
    queue.follows_kernel = false;
  };
  const unsigned images = static_cast<unsigned>(f.extent.images), tiles = blocks_of(f.extent.max_patches, side);
  blank(f.picks, f.extent.images * int64_t{f.steps} * static_cast<int64_t>(sizeof *f.picks));
  if (f.sums) launch(queue, sum_units, dim3(blocks_of(f.width, greedy_threads), images), greedy_threads, 0, f);
  if (f.others) {
    blank(f.others, f.extent.patches * static_cast<int64_t>(sizeof *f.others));
    launch(queue, closest_others, dim3(tiles, tiles, images), tile_threads, sizeof(Tile), f);
  }
  for (int step = 0; step < f.steps; step++) {
    launch(queue, farthest_step, dim3(blocks_of(f.extent.max_patches, greedy_warps), images), greedy_threads, sizeof(Offers), f, step);
  }
  if (f.indices) launch(queue, sort_chosen, dim3(images), greedy_threads, 0, f);
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::OneImage;
using cuda::Pick;
using cuda::with_run;

Status farthest_points(Context& context, ConstMatrix x, const int32_t* seeds, int64_t seed_count, int64_t count, int32_t* picked) {
  return with_run(context, "farthest_points", [&](KernelRun& run) -> Status {
    if (count == 0) return {};
    const OneImage image(run, x.rows, false, 0, seed_count + count, seed_count);
    const Matrix rows = run.upload(x);
    float* inverse_norm = run.array<float>(x.rows);
    int* fault = run.fault();
    cuda::inverse_norms(run.queue(), rows, inverse_norm, fault);
    DESAP_TRY(run.check(fault, "x"));
    cuda::FarthestPoints f{};
    f.images = image.record;
    f.extent = image.extent;
    f.width = static_cast<int>(x.cols);
    f.steps = static_cast<int>(count);
    f.rows = static_cast<const float*>(rows.data);
    f.inverse_norm = static_cast<const float*>(inverse_norm);
    f.seeds = run.upload(seeds, seed_count);
    f.others = seed_count > 0 ? nullptr : run.array<unsigned>(x.rows);
    f.closest = run.array<float>(x.rows);
    f.picks = run.array<Pick>(count);
    cuda::farthest_points(run.queue(), f);
    std::vector<Pick> picks(static_cast<size_t>(count));
    run.download(f.picks, count, picks.data());
    DESAP_TRY(run.wait());
    for (int64_t k = 0; k < count; k++) picked[k] = cuda::row_of(picks[static_cast<size_t>(k)]);
    return {};
  });
}

}  // namespace desap
