// A_s: the attention that each token receives, mean over heads; of the class token alone, or the mean of all rows.
//
// All rows, no N x N buffer:  A_s[j] = 1 / (H N) sum_h sum_i 2^(scale s_ij - shift_i) / total_i
//   1. shift_i and total_i of every row, in one pass over the keys
//   2. per block of keys a pass over all rows, whose scores come out bit for bit as in 1: the sum of each key's column
//   3. sum over heads
//
// The class token's row:  A_s[j] = 1 / H sum_h 2^(score_hj - shift_h) / total_h
//   1. score_hj, and over each 32 rows the largest and the sum of weights (folded_saliency.cu: without the keys)
//   2. shift_h and total_h from those, sum over heads
//
// Exponentials are of 2, in float32; scale has log2 e in it.
#include "kernel_run.h"
#include "class_scores.cuh"

namespace desap::cuda {

namespace {

// ---- All rows -------------------------------------------------------------------------------------------------------

// A block holds 64 rows of one side, the other comes in tiles of 64; a warp takes 32 rows x 32 keys of each.
constexpr int block_rows = 64, block_threads = 128;
constexpr int score_m = 2, score_fragments = 4;
static_assert(block_threads == block_rows / (16 * score_m) * halves * warp_size);

using Scores = float[score_m][score_fragments][4];

size_t rows_shared_bytes(Precision precision, int padded_size) {
  return sizeof(uint4) * static_cast<size_t>(3 * planes_of(precision) * plane_chunks(block_rows, padded_size));
}

// What a warp needs to know of its place: 32 rows from `row` on, 32 keys from `key` on.
struct Warp {
  int lane, row, key, q_place, k_place;
  __device__ __forceinline__ explicit Warp(const HeadRows& places) {
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
    lane = static_cast<int>(threadIdx.x) % warp_size;
    row = warp % 2 * 32;
    key = warp / 2 * 32;
    q_place = places.at(row + a_row(lane), a_chunk(lane));
    k_place = places.at(key + b_row(lane), b_chunk(lane));
  }
};

// s = Q K^T of the warp.
template <Precision precision>
__device__ __forceinline__ void score(Scores& s, const uint4* q, const uint4* k, const HeadRows& places,
                                      const Warp& warp) {
  const int plane = block_rows * places.chunks;
#pragma unroll
  for (int i = 0; i < score_m; i++) {
#pragma unroll
    for (int n = 0; n < score_fragments; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[i][n][e] = 0;
    }
  }
  for (int step = 0; step < places.chunks / 2; step++) {
    RowFragments<precision, score_m> rows;
    load_rows(rows, q, plane, places, warp.q_place, step);
#pragma unroll
    for (int n = 0; n < score_fragments; n += 2) {
      ColumnFragments<precision> keys;
      load_columns(keys, k + n * 8 * places.chunks, plane, places, warp.k_place, step);
      multiply_rows(s, n, rows, keys);
    }
  }
}

// softmax[h, row] = (shift, 1 / total).
template <Precision precision>
__global__ void __launch_bounds__(block_threads, 4) row_totals(Saliency saliency, float2* softmaxes) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  stamp(saliency.stamp);
  const Image& image = saliency.images[blockIdx.z];
  const int rows = image.rows, first = static_cast<int>(blockIdx.y) * block_rows;
  if (first >= rows) return;

  const HeadRows places(saliency.padded_size);
  const Warp warp(places);
  const int head = static_cast<int>(blockIdx.x), column = head * saliency.padded_size;
  const int size = RowFragments<precision, 1>::planes * block_rows * places.chunks;
  uint4* q = &ptx::shared<uint4>();
  uint4* keys = q + size;   // two tiles
  const HeadOperand all_keys = head_of<precision>(saliency.k, image, column);
  const float scale = saliency.scale[head];
  const int tiles = (rows + block_rows - 1) / block_rows;

  copy_rows<precision, block_rows, block_threads>(q, places, head_of<precision>(saliency.q, image, column), first);
  copy_rows<precision, block_rows, block_threads>(keys, places, all_keys, 0);
  ptx::copy_commit();
  RowSoftmax<score_m> softmax;
  for (int tile = 0; tile < tiles; tile++) {
    ptx::copy_wait<0>();
    __syncthreads();
    const int next = (tile + 1) * block_rows;
    if (next < rows) {
      copy_rows<precision, block_rows, block_threads>(keys + (tile + 1) % 2 * size, places, all_keys, next);
      ptx::copy_commit();
    }
    Scores s;
    score<precision>(s, q, keys + tile % 2 * size, places, warp);
    if (tile == tiles - 1) mask_keys(s, rows - tile * block_rows - warp.key, warp.lane);
    float factor[2 * score_m];
    softmax.advance(s, scale, factor);
#pragma unroll
    for (int row = 0; row < 2 * score_m; row++) {
      float sum = 0;
#pragma unroll
      for (int n = 0; n < score_fragments; n++) {
#pragma unroll
        for (int e = row % 2 * 2; e < row % 2 * 2 + 2; e++) {
          sum += ptx::exp2(fmaf(s[row / 2][n][e], scale, -softmax.shift[row]));
        }
      }
      softmax.sum[row] += sum;
    }
  }
  softmax.finish();

  // The two halves of the keys.
  float2* other = reinterpret_cast<float2*>(q);
  __syncthreads();
  if (warp.key > 0 && warp.lane % 4 == 0) {
#pragma unroll
    for (int row = 0; row < 2 * score_m; row++) {
      other[warp.row + row_of(row, warp.lane)] = make_float2(softmax.shift[row], softmax.sum[row]);
    }
  }
  __syncthreads();
  if (warp.key > 0 || warp.lane % 4 != 0) return;
#pragma unroll
  for (int row = 0; row < 2 * score_m; row++) {
    const int block_row = warp.row + row_of(row, warp.lane);
    const float2 more = other[block_row];
    const float shift = fmaxf(softmax.shift[row], more.x);
    const float total = softmax.sum[row] * ptx::exp2(softmax.shift[row] - shift) + more.y * ptx::exp2(more.x - shift);
    if (first + block_row < rows) {
      softmaxes[head * saliency.extent.rows + image.row + first + block_row] = make_float2(shift, 1 / total);
    }
  }
}

// received[h, key] = sum over the rows of their weights.
template <Precision precision>
__global__ void __launch_bounds__(block_threads, 4) column_sums(Saliency saliency, const float2* softmaxes,
                                                             float* received) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const Image& image = saliency.images[blockIdx.z];
  const int rows = image.rows, first = static_cast<int>(blockIdx.y) * block_rows;
  if (first >= rows) return;

  const HeadRows places(saliency.padded_size);
  const Warp warp(places);
  const int head = static_cast<int>(blockIdx.x), column = head * saliency.padded_size;
  const int size = RowFragments<precision, 1>::planes * block_rows * places.chunks;
  uint4* k = &ptx::shared<uint4>();
  uint4* queries = k + size;   // two tiles
  const float scale = saliency.scale[head];
  const float2* softmax = softmaxes + head * saliency.extent.rows + image.row;
  const HeadOperand all_queries = head_of<precision>(saliency.q, image, column);

  copy_rows<precision, block_rows, block_threads>(k, places, head_of<precision>(saliency.k, image, column), first);
  copy_rows<precision, block_rows, block_threads>(queries, places, all_queries, 0);
  ptx::copy_commit();
  float sum[score_fragments][2] = {};
  for (int tile = 0; tile * block_rows < rows; tile++) {
    // Rows beyond the image have score 0 and the factor 0.
    float2 row_softmax[2 * score_m];
#pragma unroll
    for (int row = 0; row < 2 * score_m; row++) {
      const int i = tile * block_rows + warp.row + row_of(row, warp.lane);
      row_softmax[row] = i < rows ? softmax[i] : make_float2(0, 0);
    }
    ptx::copy_wait<0>();
    __syncthreads();
    const int next = (tile + 1) * block_rows;
    if (next < rows) {
      copy_rows<precision, block_rows, block_threads>(queries + (tile + 1) % 2 * size, places, all_queries, next);
      ptx::copy_commit();
    }
    Scores s;
    score<precision>(s, queries + tile % 2 * size, k, places, warp);
#pragma unroll
    for (int n = 0; n < score_fragments; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float of_tile = 0;
#pragma unroll
        for (int row = 0; row < 2 * score_m; row++) {
          const float weight = ptx::exp2(fmaf(s[row / 2][n][row % 2 * 2 + e], scale, -row_softmax[row].x));
          of_tile = fmaf(weight, row_softmax[row].y, of_tile);
        }
        sum[n][e] += of_tile;
      }
    }
  }

  // The lanes that hold the same keys, then the two halves of the rows.
  float* upper = reinterpret_cast<float*>(k);
  __syncthreads();
#pragma unroll
  for (int n = 0; n < score_fragments; n++) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
#pragma unroll
      for (int distance = 4; distance < warp_size; distance *= 2) {
        sum[n][e] += __shfl_xor_sync(0xffffffffu, sum[n][e], distance);
      }
      if (warp.row > 0 && warp.lane < 4) upper[warp.key + column_of(n, e, warp.lane)] = sum[n][e];
    }
  }
  __syncthreads();
  if (warp.row > 0 || warp.lane >= 4) return;
#pragma unroll
  for (int n = 0; n < score_fragments; n++) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int key = warp.key + column_of(n, e, warp.lane);
      if (first + key < rows) received[head * saliency.extent.rows + image.row + first + key] = sum[n][e] + upper[key];
    }
  }
}

constexpr int mean_threads = 256;

__global__ void __launch_bounds__(mean_threads) mean_of_rows(Saliency saliency, const float* received) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const Image& image = saliency.images[blockIdx.y];
  const int key = static_cast<int>(blockIdx.x * mean_threads + threadIdx.x);
  if (key >= image.rows) return;
  float sum = 0;
  for (int head = 0; head < saliency.heads; head++) sum += received[head * saliency.extent.rows + image.row + key];
  const float count = static_cast<float>(saliency.heads) * static_cast<float>(image.rows);
  saliency.saliency.get()[image.patch + key] = sum / count;
}

// ---- The class token's row ------------------------------------------------------------------------------------------

template <Precision precision>
__global__ void __launch_bounds__(score_threads) class_token_scores(Saliency saliency, ClassScores to) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  stamp(saliency.stamp);
  const Image& image = saliency.images[blockIdx.z];
  const int first = static_cast<int>(blockIdx.x) * row_tile;
  if (first >= image.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int64_t row = static_cast<int64_t>(image.row) + (first + lane < image.rows ? first + lane : 0);
  for (int head = warp; head < saliency.heads; head += score_warps) {
    float sum = 0;
    for (int c = head * saliency.padded_size; c < (head + 1) * saliency.padded_size; c += chunk_size) {
      float q[8], k[8];
      read<precision>(saliency.q, image.row * saliency.q.ld + c, q);
      read<precision>(saliency.k, row * saliency.k.ld + c, k);
#pragma unroll
      for (int i = 0; i < 8; i++) sum = fmaf(q[i], k[i], sum);
    }
    put(to, image, head, lane, sum * saliency.scale[head]);
  }
}

__global__ void __launch_bounds__(mean_threads) mean_of_heads(ClassScores scores) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const Image& image = scores.images[blockIdx.y];
  const int first = static_cast<int>(blockIdx.x) * mean_threads;
  if (first >= image.rows) return;
  float2* softmax = &ptx::shared<float2>();   // per head (shift, 1 / total)
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size;
  const int tiles = (image.rows + row_tile - 1) / row_tile;
  for (int head = thread / warp_size; head < scores.heads; head += mean_threads / warp_size) {
    const float2* of_tile = scores.tiles_of(static_cast<int>(blockIdx.y), head);
    float shift = -INFINITY, total = 0;
    for (int i = lane; i < tiles; i += warp_size) shift = fmaxf(shift, of_tile[i].x);
    shift = reduce_warp(shift, Largest());
    for (int i = lane; i < tiles; i += warp_size) total = fmaf(of_tile[i].y, ptx::exp2(of_tile[i].x - shift), total);
    total = reduce_warp(total, Sum());
    if (lane == 0) softmax[head] = make_float2(shift, 1 / total);
  }
  __syncthreads();
  const int row = first + thread;
  if (row == 0 || row >= image.rows) return;
  float sum = 0;
  for (int head = 0; head < scores.heads; head++) {
    sum = fmaf(ptx::exp2(scores.score[head * scores.rows + image.row + row] - softmax[head].x), softmax[head].y, sum);
  }
  scores.saliency.get()[image.patch + row - 1] = sum / static_cast<float>(scores.heads);
}

// ---- Launches -------------------------------------------------------------------------------------------------------

template <Precision precision>
void saliency(Queue& queue, const Saliency& s) {
  const unsigned heads = static_cast<unsigned>(s.heads), images = static_cast<unsigned>(s.extent.images);
  if (s.class_token) {
    const ClassScores scores = class_scores(s.images, s.extent, s.heads, s.scratch, s.saliency);
    const dim3 grid(static_cast<unsigned>(scores.tiles), 1, images);
    launch(queue, class_token_scores<precision>, grid, score_threads, 0, s, scores);
    return launch_mean_of_heads(queue, s.extent, scores);
  }
  float2* softmaxes = reinterpret_cast<float2*>(s.scratch);
  float* received = s.scratch + 2 * s.heads * s.extent.rows;
  const size_t shared_bytes = rows_shared_bytes(precision, s.padded_size);
  const dim3 grid(heads, blocks_of(s.extent.max_rows, block_rows), images);
  launch(queue, row_totals<precision>, grid, block_threads, shared_bytes, s, softmaxes);
  launch(queue, column_sums<precision>, grid, block_threads, shared_bytes, s, softmaxes, received);
  launch(queue, mean_of_rows, dim3(blocks_of(s.extent.max_rows, mean_threads), images), mean_threads, 0, s, received);
}

}  // namespace

void launch_mean_of_heads(Queue& queue, const Extent& extent, const ClassScores& scores) {
  const dim3 grid(blocks_of(extent.max_rows, mean_threads), static_cast<unsigned>(extent.images));
  launch(queue, mean_of_heads, grid, mean_threads, static_cast<size_t>(scores.heads) * sizeof(float2), scores);
}

int64_t saliency_scratch(const Extent& extent, int heads, bool class_token) {
  return class_token ? class_floats(extent, heads) : 3 * heads * extent.rows;
}

void saliency(Queue& queue, Precision precision, const Saliency& s) {
  with_precision(precision, [&](auto constant) { saliency<decltype(constant)::value>(queue, s); });
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::OneImage;
using cuda::with_run;

Status saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, bool class_token, Rotary rotary, float* scores) {
  const int count = static_cast<int>(heads), padded_size = cuda::padded_head_size_of(q.cols, heads);
  if (padded_size < 0) return {Code::unsupported, "head size"};
  return with_run(context, "saliency", [&](KernelRun& run) -> Status {
    cuda::ScoreOperands operands{};
    DESAP_TRY(score_operands(run, q, k, heads, padded_size, rotary, &operands));
    const OneImage image(run, q.rows, class_token, 0, 0, 0);
    float* out = run.array<float>(image.extent.patches);
    cuda::Saliency saliency{};
    saliency.images = image.record;
    saliency.extent = image.extent;
    saliency.heads = count;
    saliency.padded_size = padded_size;
    saliency.class_token = class_token;
    saliency.q = operands.q.operand;
    saliency.k = operands.k.operand;
    saliency.scale = operands.scale;
    saliency.scratch = run.array<float>(cuda::saliency_scratch(image.extent, count, class_token));
    saliency.saliency = out;
    cuda::saliency(run.queue(), run.precision(), saliency);
    run.download(out, image.extent.patches, scores);
    return run.wait();
  });
}

}  // namespace desap
