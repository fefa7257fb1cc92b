// Per image and head y_i = sum_j p_ij v_j / sum_j p_ij,  p_ij = 2^(scale s_ij - shift_i),  s_ij = q_i . k_j, in one
// pass over the keys (the shape of flash attention).
//
// A block has 64 or 128 query rows; tiles of keys and values come through two buffers, the next one while this one is
// multiplied. One warp takes the first half of each tile, one the second, for the same rows: each runs its own softmax
// over its own keys, and at the end the two are added. So every row has one order of sums, whatever the size of the
// block.
//
// p is rounded to 16 bits for the product with v, with a factor 2^bias so that binary16 keeps small weights: from 2^15
// down to its subnormals. What is summed below is the rounded p: the weights then are a true average, exact for a
// single key and for equal values; rounding cannot scale a row. fp32 splits p, and what the tensor cores add of one
// tile is added to the rest by an ordinary addition: they truncate their sums, and over thousands of tiles that would
// show.
#include "kernel_run.h"
#include "scores.cuh"

namespace desap::cuda {

// What follows from the size of a head and the rows of a block.
template <Precision precision_, int head_, int rows_>
struct AttentionPlan {
  static constexpr Precision precision = precision_;
  static constexpr int head = head_, rows = rows_;   // columns of a head, rows of a block
  static constexpr int planes = planes_of(precision), elements = planes * head;
  static constexpr bool two_planes = precision == Precision::fp32;

  static constexpr int keys = elements <= 128 ? 64 : 32;   // of a tile: with 64 rows of q 96 KB at most
  static constexpr int warp_keys = keys / halves, key_steps = warp_keys / 16, key_fragments = warp_keys / 8;
  // Fragments of 16 rows a warp has: two, but one where the registers would not do.
  static constexpr int m = elements <= 192 ? 2 : 1;
  static constexpr int groups = rows / (16 * m), threads = groups * halves * warp_size;
  static constexpr int head_steps = head / 16, head_fragments = head / 8;
  static constexpr int row_plane = plane_chunks(rows, head), key_plane = plane_chunks(keys, head);
  static constexpr bool resident = elements <= 80;         // the queries' fragments stay in registers

  struct Tile {
    uint4 k[planes * key_plane], v[planes * key_plane];
  };
  struct Buffers {
    uint4 q[planes * row_plane];
    Tile tile[2];
  };
  // What the second half of the keys hands to the first, per lane.
  struct Exchange {
    float4 y[m * head_fragments][threads / halves];
    float2 softmax[2 * m][threads / halves];   // shift and sum
  };
  static constexpr size_t shared_bytes = sizeof(Buffers) > sizeof(Exchange) ? sizeof(Buffers) : sizeof(Exchange);
};

namespace {

constexpr float bias = 8;   // bias + RowSoftmax::slack < 16

template <class Plan>
__device__ __forceinline__ void copy_tile(typename Plan::Tile& to, const HeadOperand& k, const HeadOperand& v,
                                          int tile) {
  constexpr HeadRows places(Plan::head);
  copy_rows<Plan::precision, Plan::keys, Plan::threads>(to.k, places, k, tile * Plan::keys);
  copy_rows<Plan::precision, Plan::keys, Plan::threads>(to.v, places, v, tile * Plan::keys);
}

// p = 2^(scale s - shift + bias), rounded as the product needs it, and added to the softmax' sums. The 16 keys of a
// step are two fragments of s, and in the same lanes.
template <class Plan>
__device__ __forceinline__ void weigh(RowSoftmax<Plan::m>& softmax, const float (&s)[Plan::m][Plan::key_fragments][4],
                                      float scale, RowFragments<Plan::precision, Plan::m> (&p)[Plan::key_steps]) {
#pragma unroll
  for (int row = 0; row < 2 * Plan::m; row++) {
    const int i = row / 2, e = row % 2 * 2;
    const float offset = bias - softmax.shift[row];
#pragma unroll
    for (int n = 0; n < Plan::key_fragments; n++) {
      float left = ptx::exp2(fmaf(s[i][n][e], scale, offset)), right = ptx::exp2(fmaf(s[i][n][e + 1], scale, offset));
      uint32_t hi, lo;
      split<Plan::precision>(left, right, hi, lo);
      p[n / 2].plane[0][i][n % 2 * 2 + row % 2] = hi;
      if constexpr (Plan::two_planes) {
        p[n / 2].plane[1][i][n % 2 * 2 + row % 2] = lo;
      } else {
        left = unpack<Plan::precision>(static_cast<uint16_t>(hi & 0xffff));
        right = unpack<Plan::precision>(static_cast<uint16_t>(hi >> 16));
      }
      softmax.sum[row] += left + right;
    }
  }
}

template <class Plan>
__global__ void __launch_bounds__(Plan::threads) attention_kernel(Attention a) {
  constexpr Precision precision = Plan::precision;
  constexpr int m = Plan::m;
  constexpr HeadRows places(Plan::head);
  auto& buffers = ptx::shared<typename Plan::Buffers>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  stamp(a.stamp);
  const Image& image = a.images[blockIdx.z];
  const int rows = image.rows, first = static_cast<int>(blockIdx.y) * Plan::rows;
  if (first >= rows) return;

  const int head = static_cast<int>(blockIdx.x), column = head * Plan::head;
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int group = warp % Plan::groups, half = warp / Plan::groups;
  const int row = group * 16 * m, key = half * Plan::warp_keys;   // the warp's first of the block, of a tile
  const int q_place = places.at(row + a_row(lane), a_chunk(lane));
  const int k_place = places.at(key + b_row(lane), b_chunk(lane));
  const int v_place = places.at(key + a_row(lane), a_chunk(lane));
  const bool active = first + row < rows;
  const HeadOperand keys = head_of<precision>(a.k, image, column), values = head_of<precision>(a.v, image, column);
  const int tiles = (rows + Plan::keys - 1) / Plan::keys;
  const float scale = a.scale[head];

  copy_rows<precision, Plan::rows, Plan::threads>(buffers.q, places, head_of<precision>(a.q, image, column), first);
  copy_tile<Plan>(buffers.tile[0], keys, values, 0);
  ptx::copy_commit();
  ptx::copy_wait<0>();
  __syncthreads();

  RowFragments<precision, m> q[Plan::resident ? Plan::head_steps : 1];
  if constexpr (Plan::resident) {
#pragma unroll
    for (int step = 0; step < Plan::head_steps; step++) {
      load_rows(q[step], buffers.q, Plan::row_plane, places, q_place, step);
    }
  }
  RowSoftmax<m> softmax;
  float y[m][Plan::head_fragments][4] = {};

  for (int tile = 0; tile < tiles; tile++) {
    if (tile + 1 < tiles) {
      copy_tile<Plan>(buffers.tile[(tile + 1) % 2], keys, values, tile + 1);
      ptx::copy_commit();
    }
    if (active) {
      const auto& arrived = buffers.tile[tile % 2];
      float s[m][Plan::key_fragments][4] = {};
#pragma unroll
      for (int step = 0; step < Plan::head_steps; step++) {
        auto& queries = q[Plan::resident ? step : 0];
        if constexpr (!Plan::resident) load_rows(queries, buffers.q, Plan::row_plane, places, q_place, step);
#pragma unroll
        for (int n = 0; n < Plan::key_fragments; n += 2) {
          ColumnFragments<precision> k;
          load_columns(k, arrived.k + n * 8 * places.chunks, Plan::key_plane, places, k_place, step);
          multiply_rows(s, n, queries, k);
        }
      }
      if (tile == tiles - 1) mask_keys(s, rows - tile * Plan::keys - key, lane);

      float factor[2 * m];
      const bool moved = softmax.advance(s, scale, factor);
      if (!Plan::two_planes && moved) {
#pragma unroll
        for (int i = 0; i < m; i++) {
#pragma unroll
          for (int n = 0; n < Plan::head_fragments; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) y[i][n][e] *= factor[2 * i + e / 2];
          }
        }
      }
      RowFragments<precision, m> p[Plan::key_steps];
      weigh<Plan>(softmax, s, scale, p);

#pragma unroll
      for (int n = 0; n < Plan::head_fragments; n += 2) {
        float sum[m][2][4] = {};   // fp32: of this tile
#pragma unroll
        for (int step = 0; step < Plan::key_steps; step++) {
          ColumnFragments<precision> v;
          load_columns_transposed(v, arrived.v + step * 16 * places.chunks, Plan::key_plane, places, v_place, n / 2);
          if constexpr (Plan::two_planes) {
            multiply_rows(sum, 0, p[step], v);
          } else {
            multiply_rows(y, n, p[step], v);
          }
        }
        if constexpr (Plan::two_planes) {
#pragma unroll
          for (int i = 0; i < m; i++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
              y[i][n][e] = fmaf(y[i][n][e], factor[2 * i + e / 2], sum[i][0][e]);
              y[i][n + 1][e] = fmaf(y[i][n + 1][e], factor[2 * i + e / 2], sum[i][1][e]);
            }
          }
        }
      }
    }
    ptx::copy_wait<0>();
    __syncthreads();
  }
  softmax.finish();

  auto& exchange = ptx::shared<typename Plan::Exchange>();
  const int place = group * warp_size + lane;
  if (half == 1) {
#pragma unroll
    for (int i = 0; i < 2 * m; i++) exchange.softmax[i][place] = make_float2(softmax.shift[i], softmax.sum[i]);
#pragma unroll
    for (int i = 0; i < m; i++) {
#pragma unroll
      for (int n = 0; n < Plan::head_fragments; n++) {
        exchange.y[i * Plan::head_fragments + n][place] = make_float4(y[i][n][0], y[i][n][1], y[i][n][2], y[i][n][3]);
      }
    }
  }
  __syncthreads();
  if (half == 1) return;

#pragma unroll
  for (int lane_row = 0; lane_row < 2 * m; lane_row++) {
    const int i = lane_row / 2, e = lane_row % 2 * 2, y_row = first + row + row_of(lane_row, lane);
    const float2 other = exchange.softmax[lane_row][place];
    const float shift = fmaxf(softmax.shift[lane_row], other.x);
    float factor = ptx::exp2(softmax.shift[lane_row] - shift), other_factor = ptx::exp2(other.x - shift);
    const float inverse = 1 / (softmax.sum[lane_row] * factor + other.y * other_factor);
    factor *= inverse;
    other_factor *= inverse;
    if (y_row >= rows) continue;
    const int64_t offset = (static_cast<int64_t>(image.row) + y_row) * a.y.ld + column;
#pragma unroll
    for (int n = 0; n < Plan::head_fragments; n++) {
      const float4& other_y = exchange.y[i * Plan::head_fragments + n][place];
      const float left = y[i][n][e] * factor + (e ? other_y.z : other_y.x) * other_factor;
      const float right = y[i][n][e + 1] * factor + (e ? other_y.w : other_y.y) * other_factor;
      uint32_t hi, lo;
      split<precision>(left, right, hi, lo);
      *reinterpret_cast<uint32_t*>(a.y.hi + offset + column_of(n, 0, lane)) = hi;
      if constexpr (Plan::two_planes) *reinterpret_cast<uint32_t*>(a.y.lo + offset + column_of(n, 0, lane)) = lo;
    }
  }
}

template <class Plan>
void attention(Queue& queue, const Attention& a) {
  static_assert(Plan::shared_bytes <= 96 * 1024);
  const dim3 grid(static_cast<unsigned>(a.heads), blocks_of(a.extent.max_rows, Plan::rows),
                  static_cast<unsigned>(a.extent.images));
  launch(queue, attention_kernel<Plan>, grid, Plan::threads, Plan::shared_bytes, a);
}

// Blocks of 128 rows bring each tile in half as often, which counts when the L2 cache is the limit; blocks of 64 spread
// little work over more processors, and are all that shared memory and registers allow the largest heads in fp32.
template <Precision precision, int head>
void attention(Queue& queue, const Attention& a) {
  constexpr int64_t enough = 2 * 132;
  if constexpr (planes_of(precision) * head <= 160) {
    using Large = AttentionPlan<precision, head, 128>;
    const int64_t blocks = int64_t{a.heads} * a.extent.images * blocks_of(a.extent.max_rows, Large::rows);
    if (blocks >= enough) return attention<Large>(queue, a);
  }
  attention<AttentionPlan<precision, head, 64>>(queue, a);
}

template <Precision precision>
void attention(Queue& queue, const Attention& a) {
  switch (a.padded_size) {
    case 32: return attention<precision, 32>(queue, a);
    case 64: return attention<precision, 64>(queue, a);
    case 80: return attention<precision, 80>(queue, a);
    case 96: return attention<precision, 96>(queue, a);
    case 128: return attention<precision, 128>(queue, a);
  }
}

}  // namespace

void attention(Queue& queue, Precision precision, const Attention& a) {
  with_precision(precision, [&](auto constant) { attention<decltype(constant)::value>(queue, a); });
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::OneImage;
using cuda::Scaled;
using cuda::with_run;

Status attention(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Matrix y) {
  const int count = static_cast<int>(heads), padded_size = cuda::padded_head_size_of(q.cols, heads);
  if (padded_size < 0) return {Code::unsupported, "head size"};
  return with_run(context, "attention", [&](KernelRun& run) -> Status {
    cuda::ScoreOperands operands{};
    DESAP_TRY(score_operands(run, q, k, heads, padded_size, {}, &operands));
    const Scaled values = scaled(run, run.upload(v), count, padded_size);
    const OneImage image(run, q.rows, false, 0, 0, 0);
    const cuda::Operand attended = run.operand(q.rows, values.operand.ld);
    const Matrix out = run.matrix(y.rows, y.cols);
    cuda::Attention attention{};
    attention.images = image.record;
    attention.extent = image.extent;
    attention.heads = count;
    attention.padded_size = padded_size;
    attention.q = operands.q.operand;
    attention.k = operands.k.operand;
    attention.v = values.operand;
    attention.scale = operands.scale;
    attention.y = attended;
    cuda::attention(run.queue(), run.precision(), attention);
    cuda::from_operand(run.queue(), run.precision(), attended, count, padded_size, values.exponent, nullptr, out);
    run.download(out, y);
    return run.wait();
  });
}

}  // namespace desap
