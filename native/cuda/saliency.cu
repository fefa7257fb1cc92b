// A_s: the attention that each token receives, mean over heads; of the class token alone, or the mean of all rows.
//
// All rows, no N x N buffer:  A_s[j] = 1 / (H N) sum_h sum_i 2^(scale s_ij - shift_i) / total_i
//   1. shift_i and total_i of every row, in one pass over the keys
//   2. per block of keys a pass over all rows, whose scores come out bit for bit as in 1: the sum of each key's column
//   3. sum over heads
//
// The class token's row:  A_s[j] = 1 / H sum_h 2^(score_hj - shift_h) / total_h
//   1. score_hj, and over each 32 tokens the largest and the sum of weights, either from the keys or, folded, from
//      u_h = W_k,h^T q_h and x^_j (a launch before): no keys are needed then
//   2. shift_h and total_h from those, sum over heads
//
// Exponentials are of 2, in float32; scale has log2 e in it.
#include "scores.cuh"

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
  __device__ __forceinline__ explicit Warp(const HeadRows& layout) {
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
    lane = static_cast<int>(threadIdx.x) % warp_size;
    row = warp % 2 * 32;
    key = warp / 2 * 32;
    q_place = layout.at(row + a_row(lane), a_chunk(lane));
    k_place = layout.at(key + b_row(lane), b_chunk(lane));
  }
};

// s = Q K^T of the warp.
template <Precision precision>
__device__ __forceinline__ void score(Scores& s, const uint4* q, const uint4* k, const HeadRows& layout,
                                      const Warp& warp) {
  const int plane = block_rows * layout.chunks;
#pragma unroll
  for (int i = 0; i < score_m; i++) {
#pragma unroll
    for (int n = 0; n < score_fragments; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[i][n][e] = 0;
    }
  }
  for (int step = 0; step < layout.chunks / 2; step++) {
    RowFragments<precision, score_m> rows;
    load_rows(rows, q, plane, layout, warp.q_place, step);
#pragma unroll
    for (int n = 0; n < score_fragments; n += 2) {
      ColumnFragments<precision> keys;
      load_columns(keys, k + n * 8 * layout.chunks, plane, layout, warp.k_place, step);
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

  const HeadRows layout(saliency.padded_size);
  const Warp warp(layout);
  const int head = static_cast<int>(blockIdx.x), column = head * saliency.padded_size;
  const int size = RowFragments<precision, 1>::planes * block_rows * layout.chunks;
  uint4* q = &ptx::shared<uint4>();
  uint4* keys = q + size;   // two tiles
  const HeadOperand all_keys = head_of<precision>(saliency.k, image, column);
  const float scale = saliency.scale[head];
  const int tiles = (rows + block_rows - 1) / block_rows;

  copy_rows<precision, block_rows, block_threads>(q, layout, head_of<precision>(saliency.q, image, column), first);
  copy_rows<precision, block_rows, block_threads>(keys, layout, all_keys, 0);
  ptx::copy_commit();
  RowSoftmax<score_m> softmax;
  for (int tile = 0; tile < tiles; tile++) {
    ptx::copy_wait<0>();
    __syncthreads();
    const int next = (tile + 1) * block_rows;
    if (next < rows) {
      copy_rows<precision, block_rows, block_threads>(keys + (tile + 1) % 2 * size, layout, all_keys, next);
      ptx::copy_commit();
    }
    Scores s;
    score<precision>(s, q, keys + tile % 2 * size, layout, warp);
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

  const HeadRows layout(saliency.padded_size);
  const Warp warp(layout);
  const int head = static_cast<int>(blockIdx.x), column = head * saliency.padded_size;
  const int size = RowFragments<precision, 1>::planes * block_rows * layout.chunks;
  uint4* k = &ptx::shared<uint4>();
  uint4* queries = k + size;   // two tiles
  const float scale = saliency.scale[head];
  const float2* softmax = softmaxes + head * saliency.extent.rows + image.row;
  const HeadOperand all_queries = head_of<precision>(saliency.q, image, column);

  copy_rows<precision, block_rows, block_threads>(k, layout, head_of<precision>(saliency.k, image, column), first);
  copy_rows<precision, block_rows, block_threads>(queries, layout, all_queries, 0);
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
      copy_rows<precision, block_rows, block_threads>(queries + (tile + 1) % 2 * size, layout, all_queries, next);
      ptx::copy_commit();
    }
    Scores s;
    score<precision>(s, queries + tile % 2 * size, k, layout, warp);
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

constexpr int token_tile = 32;    // tokens of a block that makes scores: one a lane
constexpr int token_warps = 8, token_threads = token_warps * warp_size;
constexpr int head_group = 16;    // heads of a block of folded_scores: two fragments of columns

// What both ways to the scores leave: score[h, row], and of each tile of 32 tokens the largest score and the sum of
// weights against it, tile[image, h, tile].
struct TokenScores {
  const Image* images;
  int heads, tiles;
  int64_t rows;
  float* score;
  float2* tile;
  Relocatable<float> saliency;

  __device__ __forceinline__ float2* tiles_of(int image, int head) const {
    return tile + (static_cast<int64_t>(image) * heads + head) * tiles;
  }
};

int tiles_of(const Extent& extent) { return static_cast<int>(blocks_of(extent.max_rows, token_tile)); }
int64_t token_floats(const Extent& extent, int heads) {
  return heads * (extent.rows + extent.images * int64_t{2} * tiles_of(extent));
}
// `scratch` has token_floats floats.
TokenScores token_scores(const Image* images, const Extent& extent, int heads, float* scratch,
                         const Relocatable<float>& saliency) {
  float* score = scratch + int64_t{2} * extent.images * heads * tiles_of(extent);
  return {images, heads, tiles_of(extent), extent.rows, score, reinterpret_cast<float2*>(scratch), saliency};
}

// A warp hands over the scores of one head, a token a lane.
__device__ __forceinline__ void put(const TokenScores& to, const Image& image, int head, int lane, float score) {
  const int tile = static_cast<int>(blockIdx.x), token = tile * token_tile + lane;
  const bool exists = token < image.rows;
  const float top = reduce_warp(exists ? score : -INFINITY, Largest());
  const float sum = reduce_warp(exists ? ptx::exp2(score - top) : 0.0f, Sum());
  if (exists) to.score[head * to.rows + image.row + token] = score;
  if (lane == 0) to.tiles_of(static_cast<int>(blockIdx.z), head)[tile] = make_float2(top, sum);
}

// The 8 numbers of 16 bytes of an operand.
template <Precision precision>
__device__ __forceinline__ void read(const ConstOperand& x, int64_t offset, float (&value)[8]) {
  const uint4 hi = *reinterpret_cast<const uint4*>(x.hi + offset);
  uint4 lo = make_uint4(0, 0, 0, 0);
  if constexpr (precision == Precision::fp32) lo = *reinterpret_cast<const uint4*>(x.lo + offset);
  const uint32_t his[4] = {hi.x, hi.y, hi.z, hi.w}, los[4] = {lo.x, lo.y, lo.z, lo.w};
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int shift = i % 2 * 16;
    value[i] = unpack<precision>(static_cast<uint16_t>(his[i / 2] >> shift & 0xffff));
    if constexpr (precision == Precision::fp32) {
      value[i] += unpack<precision>(static_cast<uint16_t>(los[i / 2] >> shift & 0xffff));
    }
  }
}

template <Precision precision>
__global__ void __launch_bounds__(token_threads) class_token_scores(Saliency saliency, TokenScores to) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  stamp(saliency.stamp);
  const Image& image = saliency.images[blockIdx.z];
  const int first = static_cast<int>(blockIdx.x) * token_tile;
  if (first >= image.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int64_t row = static_cast<int64_t>(image.row) + (first + lane < image.rows ? first + lane : 0);
  for (int head = warp; head < saliency.heads; head += token_warps) {
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

__global__ void __launch_bounds__(mean_threads) mean_of_heads(TokenScores scores) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const Image& image = scores.images[blockIdx.y];
  const int first = static_cast<int>(blockIdx.x) * mean_threads;
  if (first >= image.rows) return;
  float2* softmax = &ptx::shared<float2>();   // per head (shift, 1 / total)
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size;
  const int tiles = (image.rows + token_tile - 1) / token_tile;
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
  const int token = first + thread;
  if (token == 0 || token >= image.rows) return;
  float sum = 0;
  for (int head = 0; head < scores.heads; head++) {
    sum = fmaf(ptx::exp2(scores.score[head * scores.rows + image.row + token] - softmax[head].x), softmax[head].y, sum);
  }
  scores.saliency.get()[image.patch + token - 1] = sum / static_cast<float>(scores.heads);
}

void launch_mean_of_heads(Queue& queue, const Extent& extent, const TokenScores& scores) {
  const dim3 grid(blocks_of(extent.max_rows, mean_threads), static_cast<unsigned>(extent.images));
  launch(queue, mean_of_heads, grid, mean_threads, static_cast<size_t>(scores.heads) * sizeof(float2), scores);
}

// ---- The class token's row, folded ----------------------------------------------------------------------------------

constexpr int fold_warps = 4, fold_threads = fold_warps * warp_size, fold_images = 8;
constexpr int slice_size = operand_pad;      // columns of u that share a power of two

struct FoldShared {
  float q[fold_images][largest_head_size];
  float u[fold_warps][fold_images][slice_size];   // what each warp's rows add
};
struct ScoreShared {
  float score[token_warps][token_tile][head_group + 1];   // what each warp's slices add
};

// u as the columns' operand of a product with x^: [image, h, in], times a power of two per slice of 64 that brings its
// largest into [2^11, 2^12); `scale` is the way back.
struct Folded {
  Operand u;
  float* scale;   // [image, h, slice]
};

// 2^11 times the power of two that takes x to [1, 2); for 0, infinity and NaN any finite power.
__device__ __forceinline__ int folding_exponent(float x) {
  const int biased = static_cast<int>(__float_as_uint(x) >> 23);
  return biased == 0 || biased == 255 ? 0 : min(11 - (biased - 127), 126);
}
__device__ __forceinline__ float power_of_two(int exponent) {
  return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

// u_h = W_k,h^T q_h: a block takes one slice of one head for 8 images. Its weights, 16 rows apart per thread, stay in
// registers; they are constants, so they are read before the preceding kernels have ended.
template <Precision precision>
__global__ void __launch_bounds__(fold_threads) fold_query(FoldedSaliency saliency, Folded folded) {
  constexpr int slice_chunks = slice_size / chunk_size, rows_per_pass = fold_threads / slice_chunks;
  constexpr int passes = largest_head_size / rows_per_pass;
  auto& shared = ptx::shared<FoldShared>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size, warp = thread / warp_size;
  const int slice = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y), size = saliency.padded_size;
  const int chunk = thread % slice_chunks, row = thread / slice_chunks;

  float weight[passes][8];
#pragma unroll
  for (int pass = 0; pass < passes; pass++) {
    if (pass * rows_per_pass < size) {
      const int64_t weight_row = head * size + pass * rows_per_pass + row;
      const int64_t offset = weight_row * saliency.key.weight.ld + slice * slice_size + chunk * chunk_size;
      read<precision>(saliency.key.weight, offset, weight[pass]);
    }
  }
  ptx::wait_for_predecessor();
  ptx::release_successor();
  stamp(saliency.stamp);

  const int first = static_cast<int>(blockIdx.z) * fold_images;
  const int images = min(fold_images, saliency.extent.images - first);
  for (int i = thread; i < fold_images * size; i += fold_threads) {
    const int image = i / size, c = i % size;
    float q = 0;
    if (image < images) {
      const int64_t place = saliency.images[first + image].row * saliency.q.ld + head * size + c;
      q = unpack<precision>(saliency.q.hi[place]);
      if constexpr (precision == Precision::fp32) q += unpack<precision>(saliency.q.lo[place]);
      q *= saliency.key.scale[head * size + c];
    }
    shared.q[image][c] = q;
  }
  __syncthreads();
  for (int image = 0; image < images; image++) {
    float sum[8] = {};
#pragma unroll
    for (int pass = 0; pass < passes; pass++) {
      if (pass * rows_per_pass < size) {
        const float q = shared.q[image][pass * rows_per_pass + row];
#pragma unroll
        for (int i = 0; i < 8; i++) sum[i] = fmaf(q, weight[pass][i], sum[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 8);
      sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 16);
    }
    if (lane < slice_chunks) {
#pragma unroll
      for (int i = 0; i < 8; i++) shared.u[warp][image][chunk * chunk_size + i] = sum[i];
    }
  }
  __syncthreads();

  // 16 threads an image, 4 columns each.
  constexpr int image_threads = fold_threads / fold_images, columns = slice_size / image_threads;
  const int image = thread / image_threads, column = thread % image_threads * columns;
  float u[columns], top = 0;
#pragma unroll
  for (int i = 0; i < columns; i++) {
    u[i] = 0;
    if (image < images) {
#pragma unroll
      for (int w = 0; w < fold_warps; w++) u[i] += shared.u[w][image][column + i];
    }
    top = fmaxf(top, fabsf(u[i]));
  }
  const int exponent = folding_exponent(reduce_warp<image_threads>(top, Largest()));
  if (image >= images) return;
  const float factor = power_of_two(exponent);
  const int64_t place = static_cast<int64_t>(first + image) * saliency.heads + head;
  const int64_t offset = place * folded.u.ld + slice * slice_size + column;
  uint2 hi, lo;
  split<precision>(u[0] * factor, u[1] * factor, hi.x, lo.x);
  split<precision>(u[2] * factor, u[3] * factor, hi.y, lo.y);
  *reinterpret_cast<uint2*>(folded.u.hi + offset) = hi;
  if constexpr (precision == Precision::fp32) *reinterpret_cast<uint2*>(folded.u.lo + offset) = lo;
  if (column == 0) folded.scale[place * (saliency.key.in / slice_size) + slice] = power_of_two(-exponent);
}

// score_hj = scale_h x^_j . u_h for 32 tokens and 16 heads: each of the 8 warps takes every eighth slice, and reads
// fragments straight from memory. A lane's 16 bytes of a row are elements 8t .. 8t + 7 of 32; taken as its k of two
// products in the order in which they come, by both operands, they make a permutation of k, which a sum over k does not
// see.
template <Precision precision>
__global__ void __launch_bounds__(token_threads) folded_scores(FoldedSaliency saliency, Folded folded, TokenScores to) {
  constexpr int planes = RowFragments<precision, 2>::planes, fragments = head_group / 8;
  auto& shared = ptx::shared<ScoreShared>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const Image& image = saliency.images[blockIdx.z];
  const int first = static_cast<int>(blockIdx.x) * token_tile, first_head = static_cast<int>(blockIdx.y) * head_group;
  if (first >= image.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int g = lane / 4, t = lane % 4, slices = saliency.key.in / slice_size;
  const int64_t u_row = static_cast<int64_t>(blockIdx.z) * saliency.heads + first_head;

  float score[2][fragments][4] = {};
  for (int slice = warp; slice < slices; slice += token_warps) {
    float of_slice[2][fragments][4] = {};
#pragma unroll
    for (int part = 0; part < slice_size; part += 32) {
      const int column = slice * slice_size + part + t * chunk_size;
      uint4 x[planes][4], u[planes][fragments];
#pragma unroll
      for (int p = 0; p < planes; p++) {
        const uint16_t* normal = p ? saliency.normal.lo : saliency.normal.hi;
        const uint16_t* query = p ? folded.u.lo : folded.u.hi;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int token = first + i * 8 + g;
          const int64_t x_row = static_cast<int64_t>(image.row) + token;
          x[p][i] = make_uint4(0, 0, 0, 0);
          if (token < image.rows) {
            x[p][i] = *reinterpret_cast<const uint4*>(normal + x_row * saliency.normal.ld + column);
          }
        }
#pragma unroll
        for (int n = 0; n < fragments; n++) {
          u[p][n] = make_uint4(0, 0, 0, 0);
          if (first_head + n * 8 + g < saliency.heads) {
            u[p][n] = *reinterpret_cast<const uint4*>(query + (u_row + n * 8 + g) * folded.u.ld + column);
          }
        }
      }
#pragma unroll
      for (int step = 0; step < 2; step++) {
        RowFragments<precision, 2> rows;
        ColumnFragments<precision> columns;
#pragma unroll
        for (int p = 0; p < planes; p++) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            rows.plane[p][i / 2][i % 2] = step ? x[p][i].z : x[p][i].x;
            rows.plane[p][i / 2][i % 2 + 2] = step ? x[p][i].w : x[p][i].y;
          }
#pragma unroll
          for (int n = 0; n < fragments; n++) {
            columns.plane[p][n * 2] = step ? u[p][n].z : u[p][n].x;
            columns.plane[p][n * 2 + 1] = step ? u[p][n].w : u[p][n].y;
          }
        }
        multiply_rows(of_slice, 0, rows, columns);
      }
    }
#pragma unroll
    for (int n = 0; n < fragments; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int head = column_of(n, e, lane);
        const float scale = first_head + head < saliency.heads ? folded.scale[(u_row + head) * slices + slice] : 0.0f;
#pragma unroll
        for (int i = 0; i < 2; i++) {
          score[i][n][e] = fmaf(of_slice[i][n][e], scale, score[i][n][e]);
          score[i][n][e + 2] = fmaf(of_slice[i][n][e + 2], scale, score[i][n][e + 2]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int n = 0; n < fragments; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        shared.score[warp][row_of(2 * i + e / 2, lane)][column_of(n, e, lane)] = score[i][n][e];
      }
    }
  }
  __syncthreads();
  for (int head = warp; head < min(head_group, saliency.heads - first_head); head += token_warps) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < token_warps; w++) sum += shared.score[w][lane][head];
    put(to, image, first_head + head, lane, sum * saliency.scale[first_head + head]);
  }
}

// ---- Launches -------------------------------------------------------------------------------------------------------

template <Precision precision>
void saliency(Queue& queue, const Saliency& s) {
  const unsigned heads = static_cast<unsigned>(s.heads), images = static_cast<unsigned>(s.extent.images);
  if (s.class_token) {
    const TokenScores scores = token_scores(s.images, s.extent, s.heads, s.scratch, s.saliency);
    const dim3 grid(static_cast<unsigned>(scores.tiles), 1, images);
    launch(queue, class_token_scores<precision>, grid, token_threads, 0, s, scores);
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

template <Precision precision>
void folded_saliency(Queue& queue, const FoldedSaliency& s) {
  const unsigned heads = static_cast<unsigned>(s.heads), images = static_cast<unsigned>(s.extent.images);
  const int64_t u_size = int64_t{s.extent.images} * s.heads * s.key.in;
  uint16_t* u = reinterpret_cast<uint16_t*>(s.scratch);
  float* rest = s.scratch + u_size;   // after two planes
  const Folded folded = {{u, u + u_size, s.key.in}, rest + token_floats(s.extent, s.heads)};
  const TokenScores scores = token_scores(s.images, s.extent, s.heads, rest, s.saliency);
  const dim3 slices(static_cast<unsigned>(s.key.in / slice_size), heads, blocks_of(s.extent.images, fold_images));
  launch(queue, fold_query<precision>, slices, fold_threads, sizeof(FoldShared), s, folded);
  const dim3 tiles(static_cast<unsigned>(scores.tiles), blocks_of(s.heads, head_group), images);
  launch(queue, folded_scores<precision>, tiles, token_threads, sizeof(ScoreShared), s, folded, scores);
  launch_mean_of_heads(queue, s.extent, scores);
}

}  // namespace

int64_t saliency_scratch(const Extent& extent, int heads, bool class_token) {
  return class_token ? token_floats(extent, heads) : 3 * heads * extent.rows;
}

void saliency(Queue& queue, Precision precision, const Saliency& s) {
  switch (precision) {
    case Precision::fp32: return saliency<Precision::fp32>(queue, s);
    case Precision::fp16: return saliency<Precision::fp16>(queue, s);
    case Precision::bf16: return saliency<Precision::bf16>(queue, s);
  }
}

int64_t folded_saliency_scratch(const Extent& extent, int heads, int in) {
  return extent.images * int64_t{heads} * (in + in / slice_size) + token_floats(extent, heads);
}

void folded_saliency(Queue& queue, Precision precision, const FoldedSaliency& s) {
  switch (precision) {
    case Precision::fp32: return folded_saliency<Precision::fp32>(queue, s);
    case Precision::fp16: return folded_saliency<Precision::fp16>(queue, s);
    case Precision::bf16: return folded_saliency<Precision::bf16>(queue, s);
  }
}

}  // namespace desap::cuda
