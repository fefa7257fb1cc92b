// Nearest-centre merge: argmax over the kept rows c of x_i . x_c / |x_c|, then the mean of each group.
//
// `assign`: tiles of rows against tiles of centres, on the tensor cores with split operands. Both sides are scaled to
// length 2^12 before they are split (cosines times 2^24; nothing overflows binary16, and the low plane stays clear of
// its smallest numbers), so a zero row has similarity 0 to every centre. A similarity is the sum of its segments of 128
// elements in order, whatever the tile: equal rows have equal similarities wherever they stand. Ties go to the first
// centre, kept rows to themselves. Few rows would leave most of the device idle: then the tile is small, four segments
// are multiplied at once, and the centres are split over several blocks, each of which leaves its nearest.
//
// `average`: a block per kept row and 256 columns goes over the assignment, lists its members in ascending order and
// adds them up in that order, in float32.
#include <algorithm>
#include <cmath>

#include "kernel_run.h"
#include "kernels.cuh"
#include "multiply.cuh"
#include "ptx.cuh"
#include "reduce.cuh"
#include "stage.cuh"

namespace desap::cuda {
namespace {

constexpr int warps = 8, threads = warps * warp_size;

// --------------------------------------------------------------------------------------------------- inverse norms

__global__ void __launch_bounds__(threads) inverse_norms_kernel(ConstMatrix x, float* inverse_norm, int* fault) {
  ptx::release_successor();
  ptx::wait_for_predecessor();
  const int64_t i = int64_t{blockIdx.x} * warps + threadIdx.x / warp_size;
  if (i >= x.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const float* row = x.data + i * x.ld;
  float squares = 0;
#pragma unroll 4
  for (int64_t j = lane; j < x.cols; j += warp_size) squares = fmaf(row[j], row[j], squares);
  squares = reduce_warp(squares, Sum());
  if (lane != 0) return;
  const bool finite = squares < INFINITY;
  if (!finite) atomicMin(fault, static_cast<int>(i));
  inverse_norm[i] = finite && squares > 0 ? 1 / fmaxf(sqrtf(squares), 1e-12f) : 0;
}

// ---------------------------------------------------------------------------------------------------------- assign

constexpr int chunk = 32;              // elements of a stage: two steps of the tensor cores
constexpr int chunks_per_segment = 4;
constexpr int stages = 3;
constexpr int most_splits = 4;         // blocks that share the centres of a tile; more would only make `average` slower
constexpr float length = 4096;

struct alignas(8) Nearest {
  float similarity;
  int centre;
};
__device__ __forceinline__ Nearest nearer(Nearest a, Nearest b) {
  return b.similarity > a.similarity || (b.similarity == a.similarity && b.centre < a.centre) ? b : a;
}

// `patches` rows to assign by `centres`, `segments` at once: a stage holds a chunk of each. The warps of a segment stand
// side by side along both.
template <int patches, int centres, int segments>
struct Tile {
  static constexpr int rows = patches + centres, width = segments * chunk;
  static constexpr int plane_ld = width + 8;  // an odd number of 16 bytes: eight rows of ldmatrix fill all banks
  static constexpr int warps_per_segment = warps / segments;
  static constexpr int warps_across = warps_per_segment / (patches / 16);
  static constexpr int columns = centres / warps_across / 8;  // of a warp, eight centres each
  static constexpr int pieces_per_row = width / 4;            // of four elements
  static constexpr int pieces = rows * pieces_per_row / threads, rows_apart = threads / pieces_per_row;
  static_assert(pieces * threads == rows * pieces_per_row && columns * warps_across * 8 == centres);

  float stage[stages][rows * width];      // each piece is written and read by one thread
  uint16_t plane[2][2][rows * plane_ld];  // two buffers of hi and lo
  float segment[segments > 1 ? warps * columns * 4 * warp_size : 1];
  Nearest nearest[warps_across][patches];
  int own[patches];                        // a kept row's position in kept, or -1
};

template <int patches, int centres, int segments>
__global__ void __launch_bounds__(threads, 2) assign(const Merge merge) {
  using Shared = Tile<patches, centres, segments>;
  constexpr int columns = Shared::columns, pieces = Shared::pieces, plane_ld = Shared::plane_ld;
  Shared& shared = ptx::shared<Shared>();
  ptx::release_successor();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size, lane = thread % warp_size;
  if (thread < patches) shared.own[thread] = -1;
  ptx::wait_for_predecessor();
  stamp(merge.assign_stamp);

  const Image image = merge.images[blockIdx.y];
  const int first = static_cast<int>(blockIdx.x) * patches;
  if (first >= image.patches) return;
  const float* features = merge.features.get() + image.patch * int64_t{merge.width};
  const float* inverse_norm = merge.inverse_norm.get() + image.patch;
  const int* kept = merge.indices + image.kept;
  const bool sixteen_bytes = in_sixteen_bytes(features, merge.width);
  const int splits = static_cast<int>(gridDim.z), tiles = (image.keep + centres - 1) / centres;
  __syncthreads();

  // Piece n of this thread: four elements from `place` on of the stage's row row_of(n).
  const int place = thread % Shared::pieces_per_row * 4, own_segment = place / chunk;
  const auto row_of = [&](int n) { return thread / Shared::pieces_per_row + Shared::rows_apart * n; };
  const auto patch_of = [&](int n, int tile) {  // -1: none
    const int row = row_of(n);
    if (row < patches) return first + row < image.patches ? first + row : -1;
    const int centre = tile * centres + row - patches;
    return centre < image.keep ? kept[centre] : -1;
  };

  constexpr int elements = segments * chunks_per_segment * chunk;
  const int steps = (merge.width + elements - 1) / elements * chunks_per_segment;  // of a tile of centres
  int slot = 0;  // where the next stage is written
  int fetched_tile = static_cast<int>(blockIdx.z), fetched_step = 0, source[pieces] = {};
  const auto fetch = [&]() {
    if (fetched_tile < tiles) {
      const int segment = fetched_step / chunks_per_segment * segments + own_segment;
      const int column = (segment * chunks_per_segment + fetched_step % chunks_per_segment) * chunk + place % chunk;
#pragma unroll
      for (int n = 0; n < pieces; n++) {
        if (fetched_step == 0) source[n] = patch_of(n, fetched_tile);
        const float* row = features + max(source[n], 0) * int64_t{merge.width};
        fetch_four(&shared.stage[slot][row_of(n) * Shared::width + place], row, column,
                   source[n] < 0 ? 0 : merge.width, sixteen_bytes);
      }
      if (++fetched_step == steps) fetched_step = 0, fetched_tile += splits;
    }
    ptx::copy_commit();
    slot = slot + 1 < stages ? slot + 1 : 0;
  };

  const int segment = warp / Shared::warps_per_segment, within = warp % Shared::warps_per_segment;
  const int down = within / Shared::warps_across * 16, across = within % Shared::warps_across * columns * 8;
  const int group = lane / 4, pair = lane % 4 * 2;
  Nearest best[2] = {{-INFINITY, 0}, {-INFINITY, 0}};  // of the warp's rows `group` and `group + 8`
  int buffer = 0;
  for (int n = 0; n < stages - 1; n++) fetch();
  for (int tile = static_cast<int>(blockIdx.z); tile < tiles; tile += splits) {
    float scale[pieces];
#pragma unroll
    for (int n = 0; n < pieces; n++) {
      const int patch = patch_of(n, tile), centre = row_of(n) - patches;
      scale[n] = patch < 0 ? 0 : inverse_norm[patch] * length;
      if (centre >= 0 && patch >= first && patch < first + patches) shared.own[patch - first] = tile * centres + centre;
    }
    float total[columns][4] = {}, sum[columns][4] = {};

    for (int step = 0; step < steps; step++) {
      ptx::copy_wait<stages - 2>();
      // The oldest stage is the one after the next to be written, which was consumed last time.
      const float* stage = shared.stage[slot + 1 < stages ? slot + 1 : 0];
      uint16_t* hi_plane = shared.plane[buffer][0];
      uint16_t* lo_plane = shared.plane[buffer][1];
      buffer ^= 1;
#pragma unroll
      for (int n = 0; n < pieces; n++) {
        const float4 x = *reinterpret_cast<const float4*>(stage + row_of(n) * Shared::width + place);
        // Rounded here: not contracted with the subtraction in `split`, in one tile perhaps and not in another.
        const auto scaled = [&](float value) { return fmaf(value, scale[n], 0.0f); };
        uint2 hi, lo;
        split<Precision::fp32>(scaled(x.x), scaled(x.y), hi.x, lo.x);
        split<Precision::fp32>(scaled(x.z), scaled(x.w), hi.y, lo.y);
        *reinterpret_cast<uint2*>(hi_plane + row_of(n) * plane_ld + place) = hi;
        *reinterpret_cast<uint2*>(lo_plane + row_of(n) * plane_ld + place) = lo;
      }
      fetch();
      __syncthreads();  // also: all are done with the other buffer

#pragma unroll
      for (int begin = 0; begin < chunk; begin += 16) {
        const int k = segment * chunk + begin;
        uint32_t a_hi[4], a_lo[4];
        ptx::load_matrices(a_hi, hi_plane + (down + a_row(lane)) * plane_ld + k + 8 * a_chunk(lane));
        ptx::load_matrices(a_lo, lo_plane + (down + a_row(lane)) * plane_ld + k + 8 * a_chunk(lane));
#pragma unroll
        for (int y = 0; y < columns; y++) {
          uint32_t b[4];  // eight centres: hi from the addresses of the first sixteen lanes, lo from the others'
          const uint16_t* b_plane = lane < 16 ? hi_plane : lo_plane;
          ptx::load_matrices(b, b_plane + (patches + across + 8 * y + lane % 8) * plane_ld + k + 8 * b_chunk(lane));
          const uint32_t b_hi[2] = {b[0], b[1]}, b_lo[2] = {b[2], b[3]};
          multiply<Precision::fp32>(sum[y], a_hi, a_lo, b_hi, b_lo);
        }
      }
      if ((step + 1) % chunks_per_segment != 0) continue;

      // The warps of the first segment add the others' to theirs. Until these are written again, barriers have passed.
      float* values = shared.segment + (within * columns * 4) * warp_size + lane;
      constexpr int apart = Shared::warps_per_segment * columns * 4 * warp_size;
#pragma unroll
      for (int y = 0; y < columns; y++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          if (segment == 0) {
            total[y][e] += sum[y][e];
          } else {
            values[segment * apart + (y * 4 + e) * warp_size] = sum[y][e];
          }
          sum[y][e] = 0;
        }
      }
      if constexpr (segments > 1) {
        __syncthreads();
        if (segment == 0) {
#pragma unroll
          for (int y = 0; y < columns; y++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
              for (int other = 1; other < segments; other++) {
                total[y][e] += values[other * apart + (y * 4 + e) * warp_size];
              }
            }
          }
        }
      }
    }

    // This thread's centres in ascending order: only a larger similarity wins.
#pragma unroll
    for (int y = 0; y < columns; y++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int centre = tile * centres + across + 8 * y + pair + e % 2;
        if (centre < image.keep && total[y][e] > best[e / 2].similarity) best[e / 2] = {total[y][e], centre};
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      const Nearest other{__shfl_xor_sync(0xffffffffu, best[half].similarity, distance),
                          __shfl_xor_sync(0xffffffffu, best[half].centre, distance)};
      best[half] = nearer(best[half], other);
    }
    if (segment == 0 && pair == 0) shared.nearest[within % Shared::warps_across][down + group + 8 * half] = best[half];
  }
  __syncthreads();
  if (thread >= patches || first + thread >= image.patches) return;
  Nearest nearest = shared.nearest[0][thread];
#pragma unroll
  for (int w = 1; w < Shared::warps_across; w++) nearest = nearer(nearest, shared.nearest[w][thread]);
  if (shared.own[thread] >= 0) nearest = {INFINITY, shared.own[thread]};
  const int64_t patch = image.patch + first + thread;
  if (splits == 1) {
    merge.assignment[patch] = nearest.centre;
  } else {
    reinterpret_cast<Nearest*>(merge.scratch)[blockIdx.z * merge.extent.patches + patch] = nearest;
  }
}

// --------------------------------------------------------------------------------------------------------- average

constexpr int scanned = 4 * threads;  // patches looked at together
constexpr int loads = 8;              // under way at the same time

struct Members {
  int count[4 * warps];  // of each 32 patches
  int member[scanned];
};
static_assert(4 * warps == warp_size, "one lane per count");

__global__ void __launch_bounds__(threads) average(const Merge merge, int splits) {
  Members& shared = ptx::shared<Members>();
  ptx::release_successor();
  ptx::wait_for_predecessor();
  stamp(merge.stamp);

  const Image image = merge.images[blockIdx.z];
  const int centre = static_cast<int>(blockIdx.x);
  if (centre >= image.keep) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size, lane = thread % warp_size;
  const int column = static_cast<int>(blockIdx.y) * threads + thread;
  const bool valid = column < merge.width;
  const float* features = merge.features.get() + image.patch * int64_t{merge.width} + column;
  int* assignment = merge.assignment + image.patch;
  const Nearest* candidates = reinterpret_cast<const Nearest*>(merge.scratch) + image.patch;
  const auto centre_of = [&](int i) {
    if (splits == 1) return assignment[i];
    Nearest nearest[most_splits];
#pragma unroll
    for (int s = 0; s < most_splits; s++) {
      nearest[s] = s < splits ? candidates[s * merge.extent.patches + i] : Nearest{-INFINITY, 0};
    }
#pragma unroll
    for (int s = 1; s < most_splits; s++) nearest[0] = nearer(nearest[0], nearest[s]);
    return nearest[0].centre;
  };

  float sum = -0.0f;  // the one number that leaves every other as it is
  int count = 0;
  for (int begin = 0; begin < image.patches; begin += scanned) {
    int nearest[4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const int i = begin + r * threads + thread;
      nearest[r] = i < image.patches ? centre_of(i) : -1;
    }
    unsigned mine[4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
      mine[r] = __ballot_sync(0xffffffffu, nearest[r] == centre);
      if (lane == 0) shared.count[r * warps + warp] = __popc(mine[r]);
    }
    __syncthreads();
    const int own = shared.count[lane];
    int up_to = own;
#pragma unroll
    for (int distance = 1; distance < warp_size; distance *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, up_to, distance);
      if (lane >= distance) up_to += other;
    }
    const int members = __shfl_sync(0xffffffffu, up_to, warp_size - 1);
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const int before = __shfl_sync(0xffffffffu, up_to - own, r * warps + warp);
      if (mine[r] >> lane & 1) {
        const int i = begin + r * threads + thread;
        shared.member[before + __popc(mine[r] & ((1u << lane) - 1))] = i;
        if (splits > 1 && blockIdx.y == 0) assignment[i] = centre;
      }
    }
    __syncthreads();
    for (int n = 0; valid && n < members; n += loads) {
      float value[loads];
#pragma unroll
      for (int l = 0; l < loads; l++) {
        value[l] = n + l < members ? features[shared.member[n + l] * int64_t{merge.width}] : -0.0f;
      }
#pragma unroll
      for (int l = 0; l < loads; l++) sum += value[l];
    }
    count += members;
  }
  const int64_t token = image.kept + centre;
  if (valid) merge.tokens[token * merge.width + column] = sum / static_cast<float>(count);
  if (blockIdx.y == 0 && thread == 0) merge.counts[token] = count;
}

// Without merging. The block of a kept row also writes the assignment from there up to the next kept row.
__global__ void __launch_bounds__(threads) gather(const Merge merge) {
  ptx::release_successor();
  ptx::wait_for_predecessor();
  stamp(merge.assign_stamp);
  stamp(merge.stamp);

  const Image image = merge.images[blockIdx.z];
  const int centre = static_cast<int>(blockIdx.x);
  if (centre >= image.keep) return;
  const int thread = static_cast<int>(threadIdx.x), column = static_cast<int>(blockIdx.y) * threads + thread;
  const int* kept = merge.indices + image.kept;
  const int64_t token = image.kept + centre;
  if (column < merge.width) {
    const int patch = image.patch + kept[centre];
    const float value = merge.features.get()[patch * int64_t{merge.width} + column];
    if (!(fabsf(value) < INFINITY)) atomicMin(merge.fault, patch);
    merge.tokens[token * merge.width + column] = value;
  }
  if (blockIdx.y != 0) return;
  if (thread == 0) merge.counts[token] = 1;
  const int begin = centre == 0 ? 0 : kept[centre], end = centre + 1 < image.keep ? kept[centre + 1] : image.patches;
  for (int i = begin + thread; i < end; i += threads) {
    merge.assignment[image.patch + i] = i == kept[centre] ? centre : -1;
  }
}

// The tile, and how many blocks share the centres of one.
struct Plan {
  bool large;
  int splits;
};
Plan plan_of(const Extent& extent) {
  constexpr int enough_blocks = 128;  // to fill a large device
  const auto splits = [&](int rows, int centres) {
    const int64_t blocks = blocks_of(extent.patches, rows), wanted = (enough_blocks + blocks - 1) / blocks;
    return static_cast<int>(std::min({wanted, int64_t{most_splits}, int64_t{blocks_of(extent.max_keep, centres)}}));
  };
  const int large = splits(64, 64);
  if (blocks_of(extent.patches, 64) * large >= enough_blocks * 3 / 4) return {true, large};
  return {false, splits(16, 16)};
}

template <int patches, int centres, int segments>
void launch_assign(Queue& queue, const Merge& merge, int splits) {
  const dim3 grid(blocks_of(merge.extent.max_patches, patches), static_cast<unsigned>(merge.extent.images),
                  static_cast<unsigned>(splits));
  launch(queue, assign<patches, centres, segments>, grid, threads, sizeof(Tile<patches, centres, segments>), merge);
}

}  // namespace

int64_t merge_scratch(const Extent& extent) {
  const Plan plan = plan_of(extent);
  return plan.splits == 1 ? 0 : plan.splits * extent.patches * static_cast<int64_t>(sizeof(Nearest));
}

void inverse_norms(Queue& queue, ConstMatrix x, float* inverse_norm, int* fault) {
  launch(queue, inverse_norms_kernel, dim3(blocks_of(x.rows, warps)), threads, 0, x, inverse_norm, fault);
}

void merge(Queue& queue, const Merge& merge) {
  const Extent& extent = merge.extent;
  const dim3 grid(static_cast<unsigned>(extent.max_keep), blocks_of(merge.width, threads),
                  static_cast<unsigned>(extent.images));
  if (!merge.merge) {
    launch(queue, gather, grid, threads, 0, merge);
    return;
  }
  const Plan plan = plan_of(extent);
  if (plan.large) {
    launch_assign<64, 64, 1>(queue, merge, plan.splits);
  } else {
    launch_assign<16, 16, 4>(queue, merge, plan.splits);
  }
  launch(queue, average, grid, threads, sizeof(Members), merge, plan.splits);
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::OneImage;
using cuda::with_run;

Status merge(Context& context, ConstMatrix features, const int32_t* kept, int64_t k, Matrix tokens, int32_t* assignment,
             int32_t* counts) {
  return with_run(context, "merge", [&](KernelRun& run) -> Status {
    const OneImage image(run, features.rows, false, 0, k, 0);
    const Matrix rows = run.upload(features), out = run.matrix(k, features.cols);
    float* inverse_norm = run.array<float>(features.rows);
    int* fault = run.fault();
    cuda::inverse_norms(run.queue(), rows, inverse_norm, fault);
    DESAP_TRY(run.check(fault, "features"));
    cuda::Merge merge{};
    merge.images = image.record;
    merge.extent = image.extent;
    merge.width = static_cast<int>(features.cols);
    merge.merge = true;
    merge.features = rows.data;
    merge.inverse_norm = inverse_norm;
    merge.indices = run.upload(kept, k);
    merge.tokens = out.data;
    merge.assignment = run.array<int>(features.rows);
    merge.counts = run.array<int>(k);
    merge.scratch = run.array<uint8_t>(cuda::merge_scratch(image.extent));
    cuda::merge(run.queue(), merge);
    run.download(out, tokens);
    run.download(merge.assignment, features.rows, assignment);
    run.download(merge.counts, k, counts);
    return run.wait();
  });
}

}  // namespace desap
