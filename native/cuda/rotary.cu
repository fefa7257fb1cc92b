// rot(x) = x cos + turn(x) sin of an operand, in place: of the columns j and j + size / 2 of a head, a and b,
//
//   a cos[j] - b sin[j],  b cos[j + size / 2] + a sin[j + size / 2].
//
// A thread has one such pair. |cos| and |sin| are at most 1, so |rot(x)| is at most twice the largest |x|.
#include "kernels.cuh"
#include "multiply.cuh"

namespace desap::cuda {

namespace {

constexpr int threads = 256;

template <Precision precision>
__global__ void __launch_bounds__(threads) rotate_kernel(Operand x, int heads, int padded_size, int size, Rotary table) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  const int half = size / 2, pair = static_cast<int>(blockIdx.y * threads + threadIdx.x);
  if (pair >= heads * half) return;
  const int64_t row = blockIdx.x;
  const int head = pair / half, column = pair % half;
  const int64_t first = row * x.ld + static_cast<int64_t>(head) * padded_size + column, second = first + half;
  const auto read = [&](int64_t place) {
    float value = unpack<precision>(x.hi[place]);
    if constexpr (precision == Precision::fp32) value += unpack<precision>(x.lo[place]);
    return value;
  };
  const float a = read(first), b = read(second);
  const float *cos = table.cos + row * size + column, *sin = table.sin + row * size + column;
  uint32_t hi, lo;
  split<precision>(a * cos[0] - b * sin[0], b * cos[half] + a * sin[half], hi, lo);
  x.hi[first] = static_cast<uint16_t>(hi & 0xffff), x.hi[second] = static_cast<uint16_t>(hi >> 16);
  if constexpr (precision == Precision::fp32) {
    x.lo[first] = static_cast<uint16_t>(lo & 0xffff), x.lo[second] = static_cast<uint16_t>(lo >> 16);
  }
}

}  // namespace

void rotate(Queue& queue, Precision precision, Operand x, int64_t rows, int heads, int padded_size, int size, Rotary table) {
  const dim3 grid(static_cast<unsigned>(rows), blocks_of(static_cast<int64_t>(heads) * (size / 2), threads));
  with_precision(precision, [&](auto constant) {
    launch(queue, rotate_kernel<decltype(constant)::value>, grid, threads, 0, x, heads, padded_size, size, table);
  });
}

}  // namespace desap::cuda
