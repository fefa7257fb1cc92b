// The class token's saliency without the keys:  A_s[j] = 1 / H sum_h softmax_j(scale_h x^_j . u_h),  u_h = W_k,h^T q_h
//
//   1. u_h of every head, as an operand
//   2. score_hj = scale_h x^_j . u_h, and over each 32 rows the largest and the sum of weights
//   3. the softmax of every head, sum over heads (saliency.cu)
#include "class_scores.cuh"

namespace desap::cuda {

namespace {

constexpr int head_group = 16;    // heads of a block of folded_scores: two fragments of columns
constexpr int product_warps = 4, product_threads = product_warps * warp_size, product_images = 8;
constexpr int slice_size = operand_pad;      // columns of u that share a power of two

struct ProductShared {
  float q[product_images][largest_head_size];
  float u[product_warps][product_images][slice_size];   // what each warp's rows add
};
struct ScoreShared {
  float score[score_warps][row_tile][head_group + 1];   // what each warp's slices add
};

// u as the columns' operand of a product with x^: [image, h, in], times a power of two per slice of 64 that brings its
// largest into [2^11, 2^12); `scale` is the way back.
struct KeyProduct {
  Operand u;
  float* scale;   // [image, h, slice]
};

// 2^11 times the power of two that takes x to [1, 2); for 0, infinity and NaN any finite power.
__device__ __forceinline__ int operand_exponent(float x) {
  const int biased = static_cast<int>(__float_as_uint(x) >> 23);
  return biased == 0 || biased == 255 ? 0 : min(11 - (biased - 127), 126);
}
__device__ __forceinline__ float power_of_two(int exponent) {
  return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

// u_h = W_k,h^T q_h: a block takes one slice of one head for 8 images. Its weights, 16 rows apart per thread, stay in
// registers; they are constants, so they are read before the preceding kernels have ended.
template <Precision precision>
__global__ void __launch_bounds__(product_threads) key_product(FoldedSaliency saliency, KeyProduct product) {
  constexpr int slice_chunks = slice_size / chunk_size, rows_per_pass = product_threads / slice_chunks;
  constexpr int passes = largest_head_size / rows_per_pass;
  auto& shared = ptx::shared<ProductShared>();
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

  const int first = static_cast<int>(blockIdx.z) * product_images;
  const int images = min(product_images, saliency.extent.images - first);
  for (int i = thread; i < product_images * size; i += product_threads) {
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
  constexpr int image_threads = product_threads / product_images, columns = slice_size / image_threads;
  const int image = thread / image_threads, column = thread % image_threads * columns;
  float u[columns], top = 0;
#pragma unroll
  for (int i = 0; i < columns; i++) {
    u[i] = 0;
    if (image < images) {
#pragma unroll
      for (int w = 0; w < product_warps; w++) u[i] += shared.u[w][image][column + i];
    }
    top = fmaxf(top, fabsf(u[i]));
  }
  const int exponent = operand_exponent(reduce_warp<image_threads>(top, Largest()));
  if (image >= images) return;
  const float factor = power_of_two(exponent);
  const int64_t place = static_cast<int64_t>(first + image) * saliency.heads + head;
  const int64_t offset = place * product.u.ld + slice * slice_size + column;
  uint2 hi, lo;
  split<precision>(u[0] * factor, u[1] * factor, hi.x, lo.x);
  split<precision>(u[2] * factor, u[3] * factor, hi.y, lo.y);
  *reinterpret_cast<uint2*>(product.u.hi + offset) = hi;
  if constexpr (precision == Precision::fp32) *reinterpret_cast<uint2*>(product.u.lo + offset) = lo;
  if (column == 0) product.scale[place * (saliency.key.in / slice_size) + slice] = power_of_two(-exponent);
}

// score_hj = scale_h x^_j . u_h for 32 rows and 16 heads: each of the 8 warps takes every eighth slice, and reads
// fragments straight from memory. A lane's 16 bytes of a row are elements 8t .. 8t + 7 of 32; taken as its k of two
// products in the order in which they come, by both operands, they make a permutation of k, which a sum over k does not
// see.
template <Precision precision>
__global__ void __launch_bounds__(score_threads) folded_scores(FoldedSaliency saliency, KeyProduct product, ClassScores to) {
  constexpr int planes = RowFragments<precision, 2>::planes, fragments = head_group / 8;
  auto& shared = ptx::shared<ScoreShared>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const Image& image = saliency.images[blockIdx.z];
  const int first = static_cast<int>(blockIdx.x) * row_tile, first_head = static_cast<int>(blockIdx.y) * head_group;
  if (first >= image.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int g = lane / 4, t = lane % 4, slices = saliency.key.in / slice_size;
  const int64_t u_row = static_cast<int64_t>(blockIdx.z) * saliency.heads + first_head;

  float score[2][fragments][4] = {};
  for (int slice = warp; slice < slices; slice += score_warps) {
    float of_slice[2][fragments][4] = {};
#pragma unroll
    for (int part = 0; part < slice_size; part += 32) {
      const int column = slice * slice_size + part + t * chunk_size;
      uint4 x[planes][4], u[planes][fragments];
#pragma unroll
      for (int p = 0; p < planes; p++) {
        const uint16_t* normal = p ? saliency.normal.lo : saliency.normal.hi;
        const uint16_t* query = p ? product.u.lo : product.u.hi;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row = first + i * 8 + g;
          const int64_t x_row = static_cast<int64_t>(image.row) + row;
          x[p][i] = make_uint4(0, 0, 0, 0);
          if (row < image.rows) {
            x[p][i] = *reinterpret_cast<const uint4*>(normal + x_row * saliency.normal.ld + column);
          }
        }
#pragma unroll
        for (int n = 0; n < fragments; n++) {
          u[p][n] = make_uint4(0, 0, 0, 0);
          if (first_head + n * 8 + g < saliency.heads) {
            u[p][n] = *reinterpret_cast<const uint4*>(query + (u_row + n * 8 + g) * product.u.ld + column);
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
        const float scale = first_head + head < saliency.heads ? product.scale[(u_row + head) * slices + slice] : 0.0f;
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
  for (int head = warp; head < min(head_group, saliency.heads - first_head); head += score_warps) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < score_warps; w++) sum += shared.score[w][lane][head];
    put(to, image, first_head + head, lane, sum * saliency.scale[first_head + head]);
  }
}

template <Precision precision>
void folded_saliency(Queue& queue, const FoldedSaliency& s) {
  const unsigned heads = static_cast<unsigned>(s.heads), images = static_cast<unsigned>(s.extent.images);
  const int64_t u_size = int64_t{s.extent.images} * s.heads * s.key.in;
  uint16_t* u = reinterpret_cast<uint16_t*>(s.scratch);
  float* rest = s.scratch + u_size;   // after two planes
  const KeyProduct product = {{u, u + u_size, s.key.in}, rest + class_floats(s.extent, s.heads)};
  const ClassScores scores = class_scores(s.images, s.extent, s.heads, rest, s.saliency);
  const dim3 slices(static_cast<unsigned>(s.key.in / slice_size), heads, blocks_of(s.extent.images, product_images));
  launch(queue, key_product<precision>, slices, product_threads, sizeof(ProductShared), s, product);
  const dim3 tiles(static_cast<unsigned>(scores.tiles), blocks_of(s.heads, head_group), images);
  launch(queue, folded_scores<precision>, tiles, score_threads, sizeof(ScoreShared), s, product, scores);
  launch_mean_of_heads(queue, s.extent, scores);
}

}  // namespace

int64_t folded_saliency_scratch(const Extent& extent, int heads, int in) {
  return extent.images * int64_t{heads} * (in + in / slice_size) + class_floats(extent, heads);
}

void folded_saliency(Queue& queue, Precision precision, const FoldedSaliency& s) {
  with_precision(precision, [&](auto constant) { folded_saliency<decltype(constant)::value>(queue, s); });
}

}  // namespace desap::cuda
