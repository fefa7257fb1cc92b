// Fine-grained cross-modal alignment. With z_ij = lambda beta_j m_ij and w_ij = lambda alpha_i m_ij:
//
//   M_V[i,j] = alpha_i / P  softmax_j(z)_ij        each patch spreads over the text
//   M_T[i,j] = beta_j / T   softmax_i(w)_ij        each text token spreads over the patches
//   task_i   = 1/T sum_j (M_V + M_T)_ij m_ij
//
// Two kernels. `product` multiplies the patches, and below them the global row, with the text, and beside it the end-of-text vector e:
//
//   [ visual ]                  [ m      alpha ]
//   [ global ] [ text^T  e ] =  [ beta^T    .  ]
//
// A tile has e as its first column, so it knows its own alpha and leaves for each of its columns, per group of
// 16 patches, the largest w and the sum of 2^(w - largest). `finish` joins the groups in order, then takes a row per
// warp.
//
// A product is summed in one order whatever the tile: warp r of a tile takes elements [16 r, 16 r + 16) of every 128,
// and the eight sums are added in order.
//
// Exponents are of 2 (z and w times log2 e). Both softmaxes subtract their largest exponent, so any lambda is safe.
#include <algorithm>
#include <vector>

#include "kernel_run.h"
#include "kernels.cuh"
#include "ptx.cuh"
#include "reduce.cuh"
#include "stage.cuh"

namespace desap::cuda {
namespace {

constexpr int warps = 8, threads = warps * warp_size;
constexpr int slice = 16, chunk = warps * slice;  // elements of E: of a warp, of a stage
constexpr int stage_ld = chunk + 4;               // rows start 4 banks apart: eight of them at once fill all banks
constexpr int group_rows = 16;                    // patches whose exponents are summed together
constexpr float log2_e = 1.44269504088896340736f;
constexpr float lowest = -3.402823466e38f;

// Of one column and some of its rows: the largest exponent, and the sum of 2^(exponent - largest).
struct alignas(8) Column {
  float largest, sum;
};

template <int count>
__device__ __forceinline__ Column join(Column first, const Column (&others)[count]) {
  float largest = first.largest;
#pragma unroll
  for (int n = 0; n < count; n++) largest = fmaxf(largest, others[n].largest);
  float sum = first.sum * ptx::exp2(first.largest - largest);
#pragma unroll
  for (int n = 0; n < count; n++) sum += others[n].sum * ptx::exp2(others[n].largest - largest);
  return {largest, sum};
}

// A rounded product: not contracted with the subtraction of the largest one, which then gives exactly 0 for that one.
__device__ __forceinline__ float exponent_of(float m, float factor) { return fmaf(m, factor, 0.0f); }

// The scratch memory. `ld`: text tokens per row, the largest image's.
struct Workspace {
  Column* columns;  // [groups, ld]
  float* m;         // [P, ld]
  float* alpha;     // [P]
  float* beta;      // [images, ld]
  int ld;
};

// Groups of all images, each image's first at image.patch / group_rows + its number: never fewer than those before it
// hold.
int64_t groups_of(const Extent& extent) { return extent.patches / group_rows + extent.images; }

// Lanes are 4 patches by 8 columns; each takes `patches` x `columns` outputs, 4 and 8 apart.
template <int patches, int columns>
struct Tile {
  static constexpr int rows = 4 * patches, width = 8 * columns, staged = rows + width;
  static constexpr int stages = 128 / staged;
  static constexpr int outputs = rows * width;
  static constexpr int value_ld = width + 1;

  float stage[stages][staged * stage_ld];
  struct Sums {  // in the place of the stages
    float partial[warps][outputs];
    float value[rows * value_ld];
  };
  static_assert(sizeof(Sums) <= sizeof(stage) && rows % group_rows == 0);
};

template <int patches, int columns>
__global__ void __launch_bounds__(threads) product(const Align align, const Workspace workspace) {
  using Shared = Tile<patches, columns>;
  constexpr int rows = Shared::rows, width = Shared::width, stages = Shared::stages;
  Shared& shared = ptx::shared<Shared>();
  ptx::release_successor();
  ptx::wait_for_predecessor();
  stamp(align.stamp);

  const Image image = align.images[blockIdx.z];
  const int first_patch = static_cast<int>(blockIdx.x) * rows, first_token = static_cast<int>(blockIdx.y) * (width - 1);
  if (first_patch > image.patches || first_token >= image.text_tokens) return;

  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size, lane = thread % warp_size;
  const int size = align.projection_dim;
  const float* visual = align.visual.get() + (image.row + (align.class_token ? 1 : 0)) * int64_t{size};
  const float* global = align.global.get() + blockIdx.z * int64_t{size};
  const bool sixteen_bytes = in_sixteen_bytes(visual, size) && in_sixteen_bytes(global, size) &&
                             in_sixteen_bytes(align.text, size);

  // The vector that a row of the stage holds a part of; null: none.
  const auto vector = [&](int row) -> const float* {
    if (row < rows) {
      const int i = first_patch + row;
      return i < image.patches ? visual + i * int64_t{size} : i == image.patches ? global : nullptr;
    }
    if (row == rows) return align.text + image.end_of_text * int64_t{size};
    const int j = first_token + row - rows - 1;
    return j < image.text_tokens ? align.text + (image.text + j) * int64_t{size} : nullptr;
  };
  const int chunks = (size + chunk - 1) / chunk;
  const auto fetch = [&](int c) {
    if (c < chunks) {
      float* stage = shared.stage[c % stages];
      for (int row = warp; row < Shared::staged; row += warps) {
        const float* from = vector(row);
        fetch_four(stage + row * stage_ld + 4 * lane, from ? from : visual, c * chunk + 4 * lane, from ? size : 0,
                   sixteen_bytes);
      }
    }
    ptx::copy_commit();
  };

  float sum[patches][columns] = {};
  for (int c = 0; c < stages - 1; c++) fetch(c);
  for (int c = 0; c < chunks; c++) {
    ptx::copy_wait<stages - 2>();
    __syncthreads();
    fetch(c + stages - 1);
    const float* a = shared.stage[c % stages] + lane / 8 * stage_ld + warp * slice;
    const float* b = shared.stage[c % stages] + (rows + lane % 8) * stage_ld + warp * slice;
#pragma unroll
    for (int k = 0; k < slice; k += 4) {
      float4 right[columns];
#pragma unroll
      for (int y = 0; y < columns; y++) right[y] = *reinterpret_cast<const float4*>(b + 8 * y * stage_ld + k);
#pragma unroll
      for (int x = 0; x < patches; x++) {
        const float4 left = *reinterpret_cast<const float4*>(a + 4 * x * stage_ld + k);
#pragma unroll
        for (int y = 0; y < columns; y++) {
          sum[x][y] = fmaf(left.x, right[y].x, sum[x][y]);
          sum[x][y] = fmaf(left.y, right[y].y, sum[x][y]);
          sum[x][y] = fmaf(left.z, right[y].z, sum[x][y]);
          sum[x][y] = fmaf(left.w, right[y].w, sum[x][y]);
        }
      }
    }
  }
  __syncthreads();

  auto& sums = reinterpret_cast<typename Shared::Sums&>(shared);
#pragma unroll
  for (int x = 0; x < patches; x++) {
#pragma unroll
    for (int y = 0; y < columns; y++) sums.partial[warp][(x * columns + y) * warp_size + lane] = sum[x][y];
  }
  __syncthreads();

  const bool clamped = align.alignment == Alignment::fcma_clamped;
  for (int output = thread; output < Shared::outputs; output += threads) {
    const int row = output / (columns * warp_size) * 4 + lane / 8;
    const int of_tile = output / warp_size % columns * 8 + lane % 8;
    float value = 0;
#pragma unroll
    for (int w = 0; w < warps; w++) value += sums.partial[w][output];
    const int i = first_patch + row, j = first_token + of_tile - 1;
    if (clamped && value < 0 && (of_tile == 0 || i == image.patches)) value = 0;
    sums.value[row * Shared::value_ld + of_tile] = value;
    if (i < image.patches) {
      if (of_tile == 0) {
        if (blockIdx.y == 0) workspace.alpha[image.patch + i] = value;
      } else if (j < image.text_tokens) {
        workspace.m[(image.patch + i) * int64_t{workspace.ld} + j] = value;
      }
    } else if (i == image.patches && of_tile > 0 && j < image.text_tokens) {
      workspace.beta[blockIdx.z * int64_t{workspace.ld} + j] = value;
    }
  }
  if (align.alignment == Alignment::mean) return;
  __syncthreads();

  const float scale = *align.lambda * log2_e;
  const int row = thread % group_rows;
  for (int column = thread / group_rows; column < rows / group_rows * width; column += threads / group_rows) {
    const int group = column / width, of_tile = column % width;
    const float* values = sums.value + (group * group_rows + row) * Shared::value_ld;
    const int begin = first_patch + group * group_rows, j = first_token + of_tile - 1;
    const bool valid = begin + row < image.patches;
    const float exponent = valid ? exponent_of(values[of_tile], scale * values[0]) : lowest;
    const float largest = reduce_warp<group_rows>(exponent, Largest());
    const float total = reduce_warp<group_rows>(valid ? ptx::exp2(exponent - largest) : 0.0f, Sum());
    if (row == 0 && of_tile > 0 && j < image.text_tokens && begin < image.patches) {
      const int64_t at = image.patch / group_rows + static_cast<int>(blockIdx.z) + begin / group_rows;
      workspace.columns[at * workspace.ld + j] = {largest, total};
    }
  }
}

// Shared memory of `finish`, followed by three arrays of all text tokens: beta, the column's largest exponent and its factor
// beta / (T sum).
struct Joined {
  Column column[warp_size][warps];
};

__global__ void __launch_bounds__(threads) finish(const Align align, const Workspace workspace, int rows_per_warp) {
  Joined& shared = ptx::shared<Joined>();
  float* beta = reinterpret_cast<float*>(&shared + 1);
  float* largest = beta + workspace.ld;
  float* factor = largest + workspace.ld;
  ptx::release_successor();
  ptx::wait_for_predecessor();

  const Image image = align.images[blockIdx.y];
  const int first = static_cast<int>(blockIdx.x) * warps * rows_per_warp;
  if (first >= image.patches) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size, lane = thread % warp_size;
  const float text_tokens = static_cast<float>(image.text_tokens);
  const bool mean = align.alignment == Alignment::mean;

  if (!mean) {
    const int groups = (image.patches + group_rows - 1) / group_rows;
    const int64_t first_group = image.patch / group_rows + static_cast<int>(blockIdx.y);
    const Column* columns = workspace.columns + first_group * workspace.ld;
    for (int begin = 0; begin < image.text_tokens; begin += warp_size) {
      const int j = begin + lane;
      constexpr Column none{lowest, 0};
      constexpr int loads = 8;  // under way at the same time
      Column column = none;
      for (int g = warp; j < image.text_tokens && g < groups; g += loads * warps) {
        Column parts[loads];
#pragma unroll
        for (int l = 0; l < loads; l++) {
          const int part = g + l * warps;
          parts[l] = part < groups ? columns[part * int64_t{workspace.ld} + j] : none;
        }
        column = join(column, parts);
      }
      shared.column[lane][warp] = column;
      __syncthreads();
      if (warp == 0 && j < image.text_tokens) {
        column = join(none, shared.column[lane]);
        beta[j] = workspace.beta[blockIdx.y * int64_t{workspace.ld} + j];
        largest[j] = column.largest;
        factor[j] = beta[j] / (column.sum * text_tokens);
      }
      __syncthreads();
    }
  }

  const float scale = *align.lambda * log2_e;
  const AlignmentMatrices matrices = align.matrices;
  for (int n = 0; n < rows_per_warp; n++) {
    const int i = first + n * warps + warp;
    if (i >= image.patches) return;
    const float* m = workspace.m + (image.patch + i) * int64_t{workspace.ld};
    const int64_t at = i * int64_t{image.text_tokens};
    if (matrices.similarity) {
#pragma unroll 1
      for (int j = lane; j < image.text_tokens; j += warp_size) matrices.similarity[at + j] = m[j];
    }
    if (mean) {
      float total = 0;
      for (int j = lane; j < image.text_tokens; j += warp_size) total += m[j];
      total = reduce_warp(total, Sum());
      if (lane == 0) align.task[image.patch + i] = total / text_tokens;
      continue;
    }

    const float alpha = workspace.alpha[image.patch + i];
    const auto visual_exponent = [&](int j) { return exponent_of(m[j], scale * beta[j]); };
    const auto text_weight = [&](int j) {
      return ptx::exp2(exponent_of(m[j], scale * alpha) - largest[j]) * factor[j];
    };
    float top = lowest;
    for (int j = lane; j < image.text_tokens; j += warp_size) top = fmaxf(top, visual_exponent(j));
    top = reduce_warp(top, Largest());
    float weights = 0, by_visual = 0, by_text = 0;
    for (int j = lane; j < image.text_tokens; j += warp_size) {
      const float weight = ptx::exp2(visual_exponent(j) - top);
      weights += weight;
      by_visual += weight * m[j];
      by_text += text_weight(j) * m[j];
    }
    weights = reduce_warp(weights, Sum());
    by_visual = reduce_warp(by_visual, Sum());
    by_text = reduce_warp(by_text, Sum());
    const float row_factor = alpha / (static_cast<float>(image.patches) * weights);
    if (lane == 0) align.task[image.patch + i] = (row_factor * by_visual + by_text) / text_tokens;
#pragma unroll 1
    for (int j = lane; j < image.text_tokens; j += warp_size) {
      if (matrices.visual_alignment) {
        matrices.visual_alignment[at + j] = ptx::exp2(visual_exponent(j) - top) * row_factor;
      }
      if (matrices.text_alignment) matrices.text_alignment[at + j] = text_weight(j);
    }
  }
}

template <int patches, int columns>
void launch_product(Queue& queue, const Align& align, const Workspace& workspace) {
  using Shared = Tile<patches, columns>;
  const Extent& extent = align.extent;
  const dim3 grid(blocks_of(extent.max_patches + 1, Shared::rows), blocks_of(extent.max_text_tokens, Shared::width - 1),
                  static_cast<unsigned>(extent.images));
  launch(queue, product<patches, columns>, grid, threads, sizeof(Shared), align, workspace);
}

}  // namespace

int64_t align_scratch(const Extent& extent) {
  return (2 * groups_of(extent) + extent.patches + extent.images) * extent.max_text_tokens + extent.patches;
}

void align(Queue& queue, const Align& align) {
  const Extent& extent = align.extent;
  Workspace workspace{};
  workspace.ld = extent.max_text_tokens;
  workspace.columns = reinterpret_cast<Column*>(align.scratch);
  workspace.m = align.scratch + 2 * groups_of(extent) * workspace.ld;
  workspace.beta = workspace.m + extent.patches * workspace.ld;
  workspace.alpha = workspace.beta + int64_t{extent.images} * workspace.ld;

  // Large tiles read less, small ones fill the device sooner; each output is the same from both.
  constexpr int enough_blocks = 128;
  using Large = Tile<8, 4>;
  if (blocks_of(extent.patches, Large::rows) * blocks_of(extent.max_text_tokens, Large::width - 1) >= enough_blocks) {
    launch_product<8, 4>(queue, align, workspace);
  } else {
    launch_product<4, 2>(queue, align, workspace);
  }

  // Every block joins all groups first: enough blocks to fill the device, then more rows for each.
  const int rows_per_warp = static_cast<int>(std::max<int64_t>(extent.patches / (enough_blocks * warps), 1));
  const dim3 grid(blocks_of(extent.max_patches, int64_t{warps} * rows_per_warp), static_cast<unsigned>(extent.images));
  const size_t shared_bytes = sizeof(Joined) + 3 * sizeof(float) * static_cast<size_t>(workspace.ld);
  launch(queue, finish, grid, threads, shared_bytes, align, workspace, rows_per_warp);
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::OneImage;
using cuda::with_run;

Status align(Context& context, ConstMatrix visual, ConstMatrix text, const float* end_of_text, const float* global,
             Alignment alignment, float lambda, float* task, AlignmentMatrices matrices) {
  return with_run(context, "align", [&](KernelRun& run) -> Status {
    const int64_t patches = visual.rows, text_tokens = text.rows, size = visual.cols;
    const OneImage image(run, patches, false, text_tokens, 0, 0);
    std::vector<float> rows;  // the text, and below it the end-of-text vector
    for (int64_t j = 0; j < text_tokens; j++) rows.insert(rows.end(), text.row(j), text.row(j) + size);
    rows.insert(rows.end(), end_of_text, end_of_text + size);
    const auto room = [&](const float* wanted) { return wanted ? run.array<float>(patches * text_tokens) : nullptr; };
    float* scores = run.array<float>(patches);
    cuda::Align align{};
    align.images = image.record;
    align.extent = image.extent;
    align.projection_dim = static_cast<int>(size);
    align.visual = run.upload(visual).data;
    align.global = run.upload(global, size);
    align.text = run.upload(rows.data(), (text_tokens + 1) * size);
    align.alignment = alignment;
    align.lambda = run.upload(&lambda, 1);
    align.scratch = run.array<float>(cuda::align_scratch(image.extent));
    align.task = scores;
    align.matrices = {room(matrices.similarity), room(matrices.visual_alignment), room(matrices.text_alignment)};
    cuda::align(run.queue(), align);
    const auto deliver = [&](const float* from, float* to) {
      if (to) run.download(from, patches * text_tokens, to);
    };
    run.download(scores, patches, task);
    deliver(align.matrices.similarity, matrices.similarity);
    deliver(align.matrices.visual_alignment, matrices.visual_alignment);
    deliver(align.matrices.text_alignment, matrices.text_alignment);
    return run.wait();
  });
}

}  // namespace desap
