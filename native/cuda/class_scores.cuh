// The class token's scores of all rows, from which its saliency is made. There are two ways to the scores: from the keys
// (saliency.cu) and without them (folded_saliency.cu).
#pragma once

#include "scores.cuh"

namespace desap::cuda {

constexpr int row_tile = 32;    // rows of a block that makes scores: one a lane
constexpr int score_warps = 8, score_threads = score_warps * warp_size;

// What both ways to the scores leave: score[h, row], and of each tile of 32 rows the largest score and the sum of
// weights against it, tile[image, h, tile].
struct ClassScores {
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

inline int tiles_of(const Extent& extent) { return static_cast<int>(blocks_of(extent.max_rows, row_tile)); }
inline int64_t class_floats(const Extent& extent, int heads) {
  return heads * (extent.rows + extent.images * int64_t{2} * tiles_of(extent));
}
// `scratch` has class_floats floats.
inline ClassScores class_scores(const Image* images, const Extent& extent, int heads, float* scratch,
                         const Relocatable<float>& saliency) {
  float* score = scratch + int64_t{2} * extent.images * heads * tiles_of(extent);
  return {images, heads, tiles_of(extent), extent.rows, score, reinterpret_cast<float2*>(scratch), saliency};
}

// A warp hands over the scores of one head, a row a lane.
__device__ __forceinline__ void put(const ClassScores& to, const Image& image, int head, int lane, float score) {
  const int tile = static_cast<int>(blockIdx.x), row = tile * row_tile + lane;
  const bool exists = row < image.rows;
  const float top = reduce_warp(exists ? score : -INFINITY, Largest());
  const float sum = reduce_warp(exists ? ptx::exp2(score - top) : 0.0f, Sum());
  if (exists) to.score[head * to.rows + image.row + row] = score;
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

// A_s from the scores, in saliency.cu.
void launch_mean_of_heads(Queue&, const Extent&, const ClassScores&);

}  // namespace desap::cuda
