// Between float32, binary16 and operands.
#include "kernel_run.h"
#include "kernels.cuh"
#include "multiply.cuh"
#include "reduce.cuh"

namespace desap::cuda {

namespace {

constexpr int threads = 256;
constexpr int per_thread = 8;   // consecutive elements, 16 bytes of 16-bit ones

__device__ __forceinline__ bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

__global__ void __launch_bounds__(threads) convert_half_kernel(const uint16_t* x, int64_t size, float* y) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x) * per_thread;
  if (first + per_thread <= size && aligned(x) && aligned(y)) {
    const uint4 bits = *reinterpret_cast<const uint4*>(x + first);
    const auto low = [](uint32_t pair) { return ptx::from_f16(static_cast<uint16_t>(pair & 0xffff)); };
    const auto high = [](uint32_t pair) { return ptx::from_f16(static_cast<uint16_t>(pair >> 16)); };
    float4* to = reinterpret_cast<float4*>(y + first);
    to[0] = make_float4(low(bits.x), high(bits.x), low(bits.y), high(bits.y));
    to[1] = make_float4(low(bits.z), high(bits.z), low(bits.w), high(bits.w));
  } else {
    for (int64_t i = first; i < first + per_thread && i < size; i++) y[i] = ptx::from_f16(x[i]);
  }
}

__global__ void __launch_bounds__(threads) convert_to_half_kernel(const float* x, int64_t size, uint16_t* y) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x) * per_thread;
  if (first + per_thread <= size && aligned(x) && aligned(y)) {
    const float4 a = reinterpret_cast<const float4*>(x + first)[0], b = reinterpret_cast<const float4*>(x + first)[1];
    *reinterpret_cast<uint4*>(y + first) =
        make_uint4(ptx::pack_f16(a.x, a.y), ptx::pack_f16(a.z, a.w), ptx::pack_f16(b.x, b.y), ptx::pack_f16(b.z, b.w));
  } else {
    for (int64_t i = first; i < first + per_thread && i < size; i++) {
      y[i] = static_cast<uint16_t>(ptx::pack_f16(x[i], 0) & 0xffff);
    }
  }
}

constexpr int magnitude_threads = 1024;
struct MagnitudeShared {
  unsigned largest[magnitude_threads / warp_size];
};

// The bits of |x| order as |x| does.
__global__ void __launch_bounds__(magnitude_threads) magnitude_kernel(ConstMatrix x, int* exponent) {
  auto& shared = ptx::shared<MagnitudeShared>();
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = static_cast<int>(threadIdx.x) % warp_size;
  unsigned largest = 0;
  for (int64_t i = warp; i < x.rows; i += magnitude_threads / warp_size) {
#pragma unroll 4
    for (int64_t j = lane; j < x.cols; j += warp_size) {
      const unsigned bits = __float_as_uint(x.data[i * x.ld + j]) & 0x7fffffffu;
      if (bits < 0x7f800000u) largest = max(largest, bits);
    }
  }
  largest = reduce_block(largest, shared.largest, Largest());
  if (threadIdx.x != 0) return;
  // |x| in [2^k, 2^(k + 1)). Subnormal: bits * 2^-149.
  const bool subnormal = largest < 0x00800000u;
  const int k = subnormal ? 31 - __clz(static_cast<int>(largest)) - 149 : static_cast<int>(largest >> 23) - 127;
  exponent[0] = largest == 0 ? 0 : 11 - k;
}

// x 2^e for |e| <= 252. 2^e itself may be beyond float32.
__device__ __forceinline__ float times_power(float x, int e) {
  const int first = e / 2, second = e - first;
  return x * __int_as_float((first + 127) << 23) * __int_as_float((second + 127) << 23);
}

template <Precision precision>
__global__ void __launch_bounds__(threads)
    to_operand_kernel(ConstMatrix x, int heads, int padded_size, const int* exponent, Operand y) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t row = blockIdx.x;
  const int column = static_cast<int>(blockIdx.y * threads + threadIdx.x) * per_thread;
  if (column >= y.ld) return;
  const int e = exponent ? exponent[0] : 0;
  const int size = static_cast<int>(x.cols) / heads;
  const int head = column / padded_size, inner = column % padded_size;   // 8 columns never span two heads
  const float* from = x.data + row * x.ld + static_cast<int64_t>(head) * size + inner;
  float value[per_thread];
#pragma unroll
  for (int i = 0; i < per_thread; i++) value[i] = head < heads && inner + i < size ? times_power(from[i], e) : 0;
  store<precision>(y, row, column, value);
}

template <Precision precision>
__global__ void __launch_bounds__(threads)
    from_operand_kernel(ConstOperand x, int heads, int padded_size, const int* exponent, const float* scale, Matrix y) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int64_t row = blockIdx.x;
  const int column = static_cast<int>(blockIdx.y * threads + threadIdx.x);
  if (column >= y.cols) return;
  const int size = static_cast<int>(y.cols) / heads;
  const int head = column / size;
  const int64_t from = row * x.ld + static_cast<int64_t>(head) * padded_size + column % size;
  float value = unpack<precision>(x.hi[from]);
  if constexpr (precision == Precision::fp32) value += unpack<precision>(x.lo[from]);
  if (exponent) value = times_power(value, -exponent[0]);
  if (scale) value *= scale[head];
  y.data[row * y.ld + column] = value;
}

}  // namespace

void convert_half(Queue& queue, const uint16_t* x, int64_t size, float* y) {
  launch(queue, convert_half_kernel, dim3(blocks_of(size, threads * per_thread)), threads, 0, x, size, y);
}

void convert_to_half(Queue& queue, const float* x, int64_t size, uint16_t* y) {
  launch(queue, convert_to_half_kernel, dim3(blocks_of(size, threads * per_thread)), threads, 0, x, size, y);
}

void magnitude(Queue& queue, ConstMatrix x, int* exponent) {
  launch(queue, magnitude_kernel, dim3(1), magnitude_threads, sizeof(MagnitudeShared), x, exponent);
}

void to_operand(Queue& queue, Precision precision, ConstMatrix x, int heads, int padded_size, const int* exponent,
                Operand y) {
  const dim3 grid(static_cast<unsigned>(x.rows), blocks_of(y.ld, threads * per_thread));
  with_precision(precision, [&](auto constant) {
    launch(queue, to_operand_kernel<decltype(constant)::value>, grid, threads, 0, x, heads, padded_size, exponent, y);
  });
}

void from_operand(Queue& queue, Precision precision, ConstOperand x, int heads, int padded_size, const int* exponent,
                  const float* scale, Matrix y) {
  const dim3 grid(static_cast<unsigned>(y.rows), blocks_of(y.cols, threads));
  with_precision(precision, [&](auto constant) {
    launch(queue, from_operand_kernel<decltype(constant)::value>, grid, threads, 0, x, heads, padded_size, exponent, scale, y);
  });
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::with_run;

Status convert_half(Context& context, const uint16_t* x, int64_t size, float* y) {
  if (size == 0) return {};
  return with_run(context, "convert_half", [&](KernelRun& run) {
    float* out = run.array<float>(size);
    cuda::convert_half(run.queue(), run.upload(x, size), size, out);
    run.download(out, size, y);
    return run.wait();
  });
}

Status convert_to_half(Context& context, const float* x, int64_t size, uint16_t* y) {
  if (size == 0) return {};
  return with_run(context, "convert_to_half", [&](KernelRun& run) {
    uint16_t* out = run.array<uint16_t>(size);
    cuda::convert_to_half(run.queue(), run.upload(x, size), size, out);
    run.download(out, size, y);
    return run.wait();
  });
}

}  // namespace desap
