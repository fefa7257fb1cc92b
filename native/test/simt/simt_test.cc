// The emulator itself: operations against their definitions, and faults that it has to find.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "../../cuda/launch.h"
#include "../../cuda/ptx.cuh"
#include "sanitize.h"
#include "simt_control.h"

// Stacks that a failure gives up are not unwound: the words of its message leak.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }

namespace desap::cuda {
namespace {

int passed = 0, failed = 0;
bool check(bool condition, const std::string& what) {
  (condition ? passed : failed)++;
  if (!condition) std::printf("FAILED: %s\n", what.c_str());
  return condition;
}

// Device memory, filled from and read back to the host.
template <class T>
class Array {
 public:
  explicit Array(size_t size) : size_(size) { cudaMalloc(&data_, size * sizeof(T)); }
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  operator T*() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost);
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), dim3 grid, int block, size_t shared_bytes, const Arguments&... arguments) {
  Queue queue;
  launch(queue, kernel, grid, block, shared_bytes, arguments...);
  check(queue.error == cudaSuccess, "launch");
}

// The failures of what `body` does.
template <class Body>
std::vector<std::string> failures_of(const Body& body) {
  simt::collect_failures(true);
  body();
  cudaDeviceSynchronize();
  simt::collect_failures(false);
  return simt::take_failures();
}
template <class Body>
void check_fails(const std::string& what, const std::vector<std::string>& words, const Body& body) {
  const std::vector<std::string> failures = failures_of(body);
  if (!check(failures.size() == 1, what + ": " + std::to_string(failures.size()) + " failures reported")) return;
  for (const std::string& word : words) {
    check(failures[0].find(word) != std::string::npos, what + ": no '" + word + "' in '" + failures[0] + "'");
  }
}

// Under many orders: how often `body` gives false or a failure is reported.
template <class Body>
int wrong_of(int seeds, const Body& body) {
  int wrong = 0;
  const simt::Settings before = simt::settings();
  for (int seed = 1; seed <= seeds; seed++) {
    simt::Settings settings = before;
    settings.seed = static_cast<uint64_t>(seed);
    simt::configure(settings);
    bool good = true;
    if (!failures_of([&] { good = body(); }).empty() || !good) wrong++;
  }
  simt::configure(before);
  return wrong;
}

// ------------------------------------------------------------------------------------------------------------ threads

__global__ void indices_kernel(int* out) {
  const int block = static_cast<int>((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  out[block * static_cast<int>(blockDim.x) + thread] = block * 1000 + thread;
}

void test_indices() {
  Array<int> out(2 * 3 * 4 * 70);
  run(indices_kernel, dim3(2, 3, 4), 70, 0, static_cast<int*>(out));
  bool good = true;
  const std::vector<int> values = out.read();
  for (int b = 0; b < 24; b++) {
    for (int t = 0; t < 70; t++) good = good && values[static_cast<size_t>(b * 70 + t)] == b * 1000 + t;
  }
  check(good, "indices");
}

// Every thread gets the sum over its block.
__global__ void __launch_bounds__(256) sum_kernel(const float* in, float* out) {
  auto& sums = ptx::shared<float[8]>();
  float sum = in[blockIdx.x * 256 + threadIdx.x];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (float part : sums) sum += part;
  out[blockIdx.x * 256 + threadIdx.x] = sum;
}

void test_sums() {
  std::vector<float> in(256 * 9);
  for (size_t i = 0; i < in.size(); i++) in[i] = static_cast<float>(i % 37) - 11;
  Array<float> x(in), y(in.size());
  check(wrong_of(20, [&] {
          run(sum_kernel, 9, 256, 32, static_cast<const float*>(x), static_cast<float*>(y));
          const std::vector<float> out = y.read();
          for (size_t block = 0; block < 9; block++) {
            float sum = 0;
            for (size_t i = 0; i < 256; i++) sum += in[block * 256 + i];
            for (size_t i = 0; i < 256; i++) {
              if (out[block * 256 + i] != sum) return false;
            }
          }
          return true;
        }) == 0, "block sums");
}

constexpr int warp = 32;

struct WarpResults {
  int from[warp], from_segment[warp], exclusive_or[warp], up[warp], down[warp], up_segment[warp];
  unsigned ballot[warp];
  int any[warp], all[warp];
  double wide[warp];
};
__global__ void warp_kernel(WarpResults* out) {
  const int lane = static_cast<int>(threadIdx.x), value = 100 + lane;
  out->from[lane] = __shfl_sync(~0u, value, lane * 7 + 3);
  out->from_segment[lane] = __shfl_sync(~0u, value, 5, 4);
  out->exclusive_or[lane] = __shfl_xor_sync(~0u, value, 20);
  out->up[lane] = __shfl_up_sync(~0u, value, 3);
  out->down[lane] = __shfl_down_sync(~0u, value, 3);
  out->up_segment[lane] = __shfl_up_sync(~0u, value, 1, 8);
  out->ballot[lane] = __ballot_sync(~0u, lane % 3 == 0);
  out->any[lane] = __any_sync(~0u, lane == 9);
  out->all[lane] = __all_sync(~0u, lane != 9);
  out->wide[lane] = __shfl_xor_sync(~0u, value + 0.25, 1);
}
void test_warp() {
  Array<WarpResults> out(1);
  run(warp_kernel, 1, warp, 0, static_cast<WarpResults*>(out));
  const WarpResults r = out.read()[0];
  bool good = true;
  unsigned thirds = 0;
  for (int l = 0; l < warp; l += 3) thirds |= 1u << l;
  for (int l = 0; l < warp; l++) {
    good = good && r.from[l] == 100 + (l * 7 + 3) % 32 && r.from_segment[l] == 100 + l / 4 * 4 + 1 &&
           r.exclusive_or[l] == 100 + (l ^ 20) && r.up[l] == 100 + (l < 3 ? l : l - 3) &&
           r.down[l] == 100 + (l > 28 ? l : l + 3) &&
           r.up_segment[l] == 100 + (l % 8 == 0 ? l : l - 1) && r.ballot[l] == thirds && r.any[l] && !r.all[l] &&
           r.wide[l] == 100.25 + (l ^ 1);
  }
  check(good, "shuffles and votes");
}

__global__ void half_warps_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  auto& shared = ptx::shared<int[warp]>();
  const unsigned mask = lane < 16 ? 0xffffu : 0xffff0000u;
  shared[lane] = lane;
  __syncwarp(mask);
  out[lane] = shared[lane ^ 15];
}
void test_half_warps() {
  Array<int> out(warp);
  check(wrong_of(20, [&] {
          run(half_warps_kernel, 1, warp, sizeof(int[warp]), static_cast<int*>(out));
          const std::vector<int> values = out.read();
          for (int l = 0; l < warp; l++) {
            if (values[static_cast<size_t>(l)] != (l ^ 15)) return false;
          }
          return true;
        }) == 0, "two groups of a warp");
}

__global__ void atomics_kernel(int* out, unsigned* bits) {
  const int i = static_cast<int>(threadIdx.x);
  atomicAdd(out, i);
  atomicMin(out + 1, 1000 - i);
  atomicMax(out + 2, i);
  atomicOr(bits, 1u << (i % 8));
}
void test_atomics() {
  Array<int> out(std::vector<int>{5, INT_MAX, 3});
  Array<unsigned> bits(std::vector<unsigned>{256});
  run(atomics_kernel, 1, 100, 0, static_cast<int*>(out), static_cast<unsigned*>(bits));
  check(out.read() == std::vector<int>{5 + 4950, 901, 99} && bits.read()[0] == 511, "atomics");
}

// ------------------------------------------------------------------------------------------------------------ numbers

double value_of(uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits & 0x7fff) >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
  const double magnitude = exponent == 2 * bias + 1 ? (mantissa ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                           : std::ldexp((1 << mantissa_bits) + mantissa,
                                                        exponent - bias - mantissa_bits);
  return bits & 0x8000 ? -magnitude : magnitude;
}

void test_numbers() {
  bool values = true, round_trip = true, nearest = true;
  for (uint32_t i = 0; i < 65536; i++) {
    const auto bits = static_cast<uint16_t>(i);
    for (const bool half : {true, false}) {
      const double expected = value_of(bits, half ? 5 : 8);
      const float value = half ? ptx::from_f16(bits) : ptx::from_bf16(bits);
      const auto pack = [&](double x) {
        const auto narrow = static_cast<float>(x);
        return half ? ptx::pack_f16(narrow, narrow) : ptx::pack_bf16(narrow, narrow);
      };
      if (std::isnan(expected)) {
        values = values && std::isnan(value);
        round_trip = round_trip && std::isnan(value_of(static_cast<uint16_t>(pack(expected)), half ? 5 : 8));
        continue;
      }
      values = values && value == expected && std::signbit(value) == std::signbit(expected);
      round_trip = round_trip && pack(expected) == (i | i << 16);
      const uint32_t infinity = half ? 0x7c00 : 0x7f80;
      if (i >= infinity) continue;
      // Beyond the largest, rounding goes on as if the exponent did.
      const double next = i + 1 == infinity ? std::ldexp(1.0, half ? 16 : 128)
                                            : value_of(static_cast<uint16_t>(i + 1), half ? 5 : 8);
      const double middle = (expected + next) / 2;
      const uint32_t even = i % 2 == 0 ? i : i + 1;
      const float below = std::nextafter(static_cast<float>(middle), 0.0f);
      const float above = std::nextafter(static_cast<float>(middle), INFINITY);
      nearest = nearest && (pack(middle) & 0xffff) == even && (pack(below) & 0xffff) == i &&
          (pack(above) & 0xffff) == i + 1;
      nearest = nearest && (pack(-middle) & 0xffff) == (even | 0x8000);
    }
  }
  check(values, "values of 16 bits");
  check(round_trip, "round trip of 16 bits");
  check(nearest, "rounding to 16 bits");
  check(ptx::pack_f16(1, -2) == 0xc0003c00u, "low in the low half");
  check(ptx::exp2(3) == 8 && ptx::exp2(-INFINITY) == 0 && ptx::exp2(-130) == 0, "exp2");
}

// ------------------------------------------------------------------------------------------------------- tensor cores

struct Tile { alignas(16) uint16_t rows[warp][8]; };
__global__ void matrices_kernel(const uint16_t* in, bool transposed, uint32_t* out) {
  auto& tile = ptx::shared<Tile>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int j = 0; j < 8; j++) tile.rows[lane][j] = in[lane * 8 + j];
  __syncwarp();
  uint32_t r[4];
  // Not in the order of the lanes, to tell a lane's address from its result.
  if (transposed) {
    ptx::load_matrices_transposed(r, tile.rows[warp - 1 - lane]);
  } else {
    ptx::load_matrices(r, tile.rows[warp - 1 - lane]);
  }
  for (int m = 0; m < 4; m++) out[lane * 4 + m] = r[m];
}
void test_matrices() {
  std::vector<uint16_t> in(warp * 8);
  for (size_t i = 0; i < in.size(); i++) in[i] = static_cast<uint16_t>(i * 257 + 11);
  Array<uint16_t> x(in);
  Array<uint32_t> y(warp * 4);
  for (const bool transposed : {false, true}) {
    run(matrices_kernel, 1, warp, sizeof(Tile), static_cast<const uint16_t*>(x), transposed, static_cast<uint32_t*>(y));
    const std::vector<uint32_t> out = y.read();
    const auto element = [&](int matrix, int row, int column) -> uint32_t {
      if (transposed) std::swap(row, column);
      return in[static_cast<size_t>((warp - 1 - (8 * matrix + row)) * 8 + column)];
    };
    bool good = true;
    for (int l = 0; l < warp; l++) {
      for (int m = 0; m < 4; m++) {
        good = good && out[static_cast<size_t>(l * 4 + m)] ==
                           (element(m, l / 4, 2 * (l % 4)) | element(m, l / 4, 2 * (l % 4) + 1) << 16);
      }
    }
    check(good, transposed ? "ldmatrix.trans" : "ldmatrix");
  }
}

template <bool half>
__global__ void multiply_kernel(const uint16_t* a, const uint16_t* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const auto pair = [](uint32_t low, uint32_t high) { return low | high << 16; };
  const auto a_pair = [&](int row, int k) { return pair(a[row * 16 + k], a[row * 16 + k + 1]); };
  const auto b_pair = [&](int k, int column) { return pair(b[k * 8 + column], b[(k + 1) * 8 + column]); };
  const uint32_t a_registers[4] = {a_pair(g, 2 * t), a_pair(g + 8, 2 * t), a_pair(g, 2 * t + 8),
                                   a_pair(g + 8, 2 * t + 8)};
  const uint32_t b_registers[2] = {b_pair(2 * t, g), b_pair(2 * t + 8, g)};
  float *const upper = d + g * 8 + 2 * t, *const lower = upper + 64;
  float* const places[4] = {upper, upper + 1, lower, lower + 1};
  float sums[4];
  for (int i = 0; i < 4; i++) sums[i] = *places[i];
  if constexpr (half) {
    ptx::multiply_f16(sums, a_registers, b_registers);
  } else {
    ptx::multiply_bf16(sums, a_registers, b_registers);
  }
  for (int i = 0; i < 4; i++) *places[i] = sums[i];
}
template <bool half>
void test_multiply(const std::string& name) {
  constexpr int exponent_bits = half ? 5 : 8;
  std::vector<uint16_t> a(16 * 16), b(16 * 8);
  std::vector<float> d(16 * 8);
  const auto bits = [&](double x) {
    const auto narrow = static_cast<float>(x);
    return static_cast<uint16_t>(half ? ptx::pack_f16(narrow, 0) : ptx::pack_bf16(narrow, 0));
  };
  for (size_t i = 0; i < a.size(); i++) a[i] = bits(std::sin(static_cast<double>(i) * 1.3) * (i % 5 == 0 ? 1e-7 : 3));
  for (size_t i = 0; i < b.size(); i++) b[i] = bits(std::cos(static_cast<double>(i) * 0.7) * 2);
  for (size_t i = 0; i < d.size(); i++) d[i] = static_cast<float>(i) / 8 - 5;
  Array<uint16_t> x(a), y(b);
  Array<float> z(d);
  run(multiply_kernel<half>, 1, warp, 0, static_cast<const uint16_t*>(x), static_cast<const uint16_t*>(y),
      static_cast<float*>(z));
  const std::vector<float> out = z.read();
  bool good = true;
  for (size_t i = 0; i < 16; i++) {
    for (size_t j = 0; j < 8; j++) {
      double sum = d[i * 8 + j], magnitude = std::fabs(sum);
      for (size_t k = 0; k < 16; k++) {
        const double product = value_of(a[i * 16 + k], exponent_bits) * value_of(b[k * 8 + j], exponent_bits);
        sum += product;
        magnitude += std::fabs(product);
      }
      good = good && std::fabs(out[i * 8 + j] - sum) <= 1e-6 * magnitude;
    }
  }
  check(good, name);
}

// ------------------------------------------------------------------------------------------- missing synchronisation

enum class Missing { nothing, wait, barrier, commit, last_barrier };

__global__ void order_kernel(int* next, int* order) {
  const int place = atomicAdd(next, 1);
  order[place] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}
void test_order() {
  std::vector<std::vector<int>> orders;
  Array<int> order(2 * 96);
  check(wrong_of(10, [&] {
          Array<int> next(std::vector<int>{0});
          run(order_kernel, 2, 96, 0, static_cast<int*>(next), static_cast<int*>(order));
          orders.push_back(order.read());
          return true;
        }) == 0, "order");
  bool other_block_first = false, other_warp_first = false, other_lane_first = false;
  for (const std::vector<int>& each : orders) {
    other_block_first = other_block_first || each[0] >= 96;
    other_warp_first = other_warp_first || each[0] % 96 >= warp;
    other_lane_first = other_lane_first || each[0] % warp != 0;
  }
  std::sort(orders.begin(), orders.end());
  check(std::unique(orders.begin(), orders.end()) == orders.end(), "every seed has its own order");
  check(other_block_first && other_warp_first && other_lane_first, "any thread may be first");
}

__global__ void poison_kernel(const uint32_t* in, uint32_t* out) {
  auto& shared = ptx::shared<uint32_t[8]>();
  out[0] = shared[7];
  shared[1] = 5;
  ptx::copy_async(shared, in, true);
  out[1] = shared[1];
  ptx::copy_commit();
  ptx::copy_wait<0>();
  out[2] = shared[1];
  ptx::copy_async(shared, in, false);
  ptx::copy_commit();
  ptx::copy_wait<0>();
  out[3] = shared[1];
}
void test_poison() {
  Array<uint32_t> in(std::vector<uint32_t>{1, 2, 3, 4}), out(4);
  run(poison_kernel, 1, 1, 32, static_cast<const uint32_t*>(in), static_cast<uint32_t*>(out));
  check(out.read() == std::vector<uint32_t>{simt::poison_word, simt::poison_word, 2, 0},
        "shared memory is poison, and a copy's target");
}

// Each thread passes its value to the thread `distance` further on, twice through the same memory.
template <Missing missing, bool whole_block>
__global__ void pass_kernel(int* out, int distance) {
  auto& shared = ptx::shared<int[128]>();
  const int i = static_cast<int>(threadIdx.x), from = (i + distance) % static_cast<int>(blockDim.x);
  const auto synchronise = [] {
    if (whole_block) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  };
  shared[i] = i;
  if (missing != Missing::barrier) synchronise();
  const int first = shared[from];
  if (missing != Missing::last_barrier) synchronise();
  shared[i] = 1000 + i;
  synchronise();
  out[i] = first == from && shared[from] == 1000 + from;
}
template <Missing missing, bool whole_block>
int wrong_passes() {
  const int threads = whole_block ? 128 : warp;
  Array<int> out(static_cast<size_t>(threads));
  return wrong_of(20, [&] {
    run(pass_kernel<missing, whole_block>, 1, threads, sizeof(int[128]), static_cast<int*>(out), whole_block ? 33 : 1);
    return out.read() == std::vector<int>(static_cast<size_t>(threads), 1);
  });
}
void test_missing_barriers() {
  check(wrong_passes<Missing::nothing, true>() == 0, "__syncthreads: right");
  check(wrong_passes<Missing::barrier, true>() == 20, "__syncthreads: missing before a read");
  check(wrong_passes<Missing::last_barrier, true>() == 20, "__syncthreads: missing before a write");
  check(wrong_passes<Missing::nothing, false>() == 0, "__syncwarp: right");
  check(wrong_passes<Missing::barrier, false>() == 20, "__syncwarp: missing before a read");
  check(wrong_passes<Missing::last_barrier, false>() == 20, "__syncwarp: missing before a write");
}

// A pipeline of cp.async through `stages` buffers: each thread copies 4 numbers per step and adds up its right
// neighbour's.
struct Stages { alignas(16) float buffers[3][64][4]; };
template <Missing missing, bool two_ahead>
__global__ void pipeline_kernel(const float* in, int steps, int valid_steps, float* out) {
  auto& shared = ptx::shared<Stages>();
  const int i = static_cast<int>(threadIdx.x), neighbour = (i + 1) % 64;
  const auto copy = [&](int step) {
    if (step < steps) ptx::copy_async(shared.buffers[step % 3][i], in + (step * 64 + i) * 4, step < valid_steps);
    if (missing != Missing::commit || step > 0) ptx::copy_commit();
  };
  copy(0);
  copy(1);
  float sum = 0;
  for (int step = 0; step < steps; step++) {
    ptx::copy_wait<missing == Missing::wait ? 2 : 1>();
    if (missing != Missing::barrier) __syncthreads();
    if (two_ahead) copy(step + 2);
    for (int j = 0; j < 4; j++) sum += shared.buffers[step % 3][neighbour][j];
    if (!two_ahead) copy(step + 3);  // overwrites what others may still be reading
  }
  out[i] = sum;
}
template <Missing missing, bool two_ahead>
int wrong_pipelines() {
  constexpr int steps = 7, valid_steps = 5;
  std::vector<float> in(steps * 64 * 4);
  for (size_t i = 0; i < in.size(); i++) in[i] = static_cast<float>(i % 1021);
  Array<float> x(in), y(64);
  return wrong_of(20, [&] {
    run(pipeline_kernel<missing, two_ahead>, 1, 64, sizeof(Stages), static_cast<const float*>(x), steps, valid_steps,
        static_cast<float*>(y));
    const std::vector<float> out = y.read();
    for (size_t i = 0; i < 64; i++) {
      float sum = 0;
      for (size_t step = 0; step < valid_steps; step++) {
        for (size_t j = 0; j < 4; j++) sum += in[(step * 64 + (i + 1) % 64) * 4 + j];
      }
      if (out[i] != sum) return false;
    }
    return true;
  });
}
void test_copies() {
  check(wrong_pipelines<Missing::nothing, true>() == 0, "cp.async: right");
  check(wrong_pipelines<Missing::wait, true>() == 20, "cp.async: waits for too few");
  check(wrong_pipelines<Missing::barrier, true>() == 20, "cp.async: no barrier after the wait");
  check(wrong_pipelines<Missing::commit, true>() == 20, "cp.async: no commit");
  check(wrong_pipelines<Missing::nothing, false>() == 20, "cp.async: into memory that is being read");
}

// ----------------------------------------------------------------------------------------------------- wrong programs

enum class Wrong {
  nothing, branches, masks, exited, caller, barriers, exit_before_collective, barrier_and_shuffle, matrix_address,
  matrix_end, copy_address, copy_end, copy_source, copy_source_end, shared_size, shared_write, global_write,
  source_lane,
};
__global__ void wrong_kernel(Wrong wrong, float* global, int size) {
  ptx::wait_for_predecessor();
  auto& shared = ptx::shared<Stages>();
  auto* const bytes = reinterpret_cast<unsigned char*>(&shared);
  const int i = static_cast<int>(threadIdx.x), lane = i % warp;
  uint32_t r[4];
  switch (wrong) {
    case Wrong::nothing: __syncthreads(); break;
    case Wrong::branches:
      if (lane < 8) {
        __shfl_sync(~0u, i, 0);
      } else {
        __ballot_sync(~0u, i);
      }
      break;
    case Wrong::masks: __syncwarp(lane == 3 ? ~0u : 0x7fffffffu | 1u << lane); break;
    case Wrong::exited:
      if (lane == 5) return;
      __syncthreads();
      __syncwarp();
      break;
    case Wrong::caller: __syncwarp(2); break;
    case Wrong::barriers:
      if (i < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case Wrong::exit_before_collective:
      __syncthreads();
      if (lane == 5) return;
      __syncwarp();
      break;
    case Wrong::barrier_and_shuffle:
      if (lane == 7) __syncthreads();
      __shfl_xor_sync(~0u, i, 1);
      break;
    case Wrong::matrix_address: ptx::load_matrices(r, bytes + lane * 16 + (lane == 9 ? 4 : 0)); break;
    case Wrong::matrix_end: ptx::load_matrices(r, bytes + sizeof shared - lane * 16); break;
    case Wrong::copy_address: ptx::copy_async(bytes + i * 16 + 8, global, true); break;
    case Wrong::copy_end: ptx::copy_async(bytes + sizeof shared - 64 + i * 16, global, true); break;
    case Wrong::copy_source: ptx::copy_async(bytes + i * 16, global + 1, true); break;
    case Wrong::copy_source_end: ptx::copy_async(bytes + i * 16, global + i * 4, true); break;
    case Wrong::shared_size: ptx::shared<Stages[2]>(); break;
    case Wrong::shared_write: bytes[sizeof shared + static_cast<size_t>(i)] = 1; break;
    case Wrong::global_write: if (i == 0) global[size] = 1; break;
    case Wrong::source_lane: if (lane < 16) __shfl_sync(0xffffu, i, 20); break;
  }
}
void test_wrong_programs() {
  const struct {
    Wrong wrong;
    const char* what;
    std::vector<std::string> words;
  } programs[] = {
      {Wrong::branches, "different operations", {"block (0, 0, 0) thread (", "__shfl_sync (simt_test.cc:",
                                                 "__ballot_sync (simt_test.cc:"}},
      {Wrong::masks, "different masks", {"masks differ"}},
      {Wrong::exited, "exited lane", {"__syncwarp", "lane 5, which has exited"}},
      {Wrong::caller, "mask without the caller", {"lacks the calling lane"}},
      {Wrong::barriers, "different barriers", {"the thread is at __syncthreads", "waits in __syncthreads"}},
      {Wrong::exit_before_collective, "exit", {"__syncwarp"}},
      {Wrong::barrier_and_shuffle, "barrier against shuffle", {"__syncthreads", "__shfl_xor_sync"}},
      {Wrong::matrix_address, "ldmatrix address", {"thread (", "ldmatrix (simt_test.cc", "not a multiple of 16"}},
      {Wrong::matrix_end, "ldmatrix beyond the end", {"ldmatrix", "not within the 3072 bytes"}},
      {Wrong::copy_address, "cp.async address", {"cp.async", "not a multiple of 16"}},
      {Wrong::copy_end, "cp.async beyond the end", {"cp.async", "not within"}},
      {Wrong::copy_source, "cp.async source", {"cp.async", "source is not a multiple"}},
      {Wrong::copy_source_end, "cp.async source beyond the end", {"cp.async", "outside its allocation"}},
      {Wrong::shared_size, "shared memory too small", {"6144 bytes is used", "3072 were launched"}},
      {Wrong::shared_write, "write beyond shared memory", {"beyond the end of its 3072 bytes", "Wrong"}},
      {Wrong::global_write, "write beyond global memory", {"offset 256 of an allocation of 256 bytes", "Wrong"}},
      {Wrong::source_lane, "shuffle from outside the mask", {"reads lane 20"}},
  };
  for (const auto& program : programs) {
    const bool traps = program.wrong == Wrong::shared_write || program.wrong == Wrong::global_write;
    if (simt::sanitized && traps) continue;
    Array<float> global(64);
    check_fails(program.what, program.words, [&] {
      run(wrong_kernel, 1, 64, sizeof(Stages), program.wrong, static_cast<float*>(global), 64);
    });
  }
  Array<float> global(64);
  const auto right = [&] { run(wrong_kernel, 3, 64, sizeof(Stages), Wrong::nothing, static_cast<float*>(global), 64); };
  check(failures_of(right).empty(), "a right program after wrong ones");
  if (simt::sanitized) return;
  check_fails("write found when freed", {"offset 40 of an allocation of 40 bytes", "freed"}, [] {
    Array<char> array(40);
    static_cast<char*>(array)[40] = 0;
  });
}

__global__ void exits_kernel(int* out) {
  if (threadIdx.x % 2 == 0) return;  // who has exited counts as arrived
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void forgets_kernel(int* out) {
  if (threadIdx.x != 40) ptx::wait_for_predecessor();
  ptx::release_successor();
  out[threadIdx.x] = 1;
}
void test_exits() {
  Array<int> out(64);
  check(wrong_of(10, [&] {
          run(exits_kernel, 1, 64, 0, static_cast<int*>(out));
          return out.read()[63] == 1;
        }) == 0, "barrier after exits");
  Queue queue;
  queue.overlap = true;
  check_fails("overlap without a wait", {"thread (40, 0, 0)", "wait_for_predecessor"}, [&] {
    launch(queue, forgets_kernel, 1, 64, 0, static_cast<int*>(out));
  });
  simt::Settings settings = simt::settings();
  settings.major = 8;
  simt::configure(settings);
  launch(queue, forgets_kernel, 1, 64, 0, static_cast<int*>(out));
  check(queue.error == cudaErrorNotSupported, "overlap before 9.0");
  simt::configure({});
}

// -------------------------------------------------------------------------------------------------- memory and streams

__global__ void add_kernel(int* at, int value) {
  ptx::wait_for_predecessor();
  if (threadIdx.x == 0) *at = *at * 2 + value;
}

struct Stream {
  explicit Stream(unsigned flags = cudaStreamNonBlocking) { cudaStreamCreateWithFlags(&stream, flags); }
  ~Stream() { cudaStreamDestroy(stream); }
  operator cudaStream_t() const { return stream; }
  void add(int* at, int value) const {
    Queue queue;
    queue.stream = stream;
    queue.overlap = true;
    launch(queue, add_kernel, 1, 32, 0, at, value);
    check(queue.error == cudaSuccess, "launch on a stream");
  }
  cudaStream_t stream = nullptr;
};
struct Event {
  Event() { cudaEventCreateWithFlags(&event, cudaEventDefault); }
  ~Event() { cudaEventDestroy(event); }
  operator cudaEvent_t() const { return event; }
  cudaEvent_t event = nullptr;
};
struct Pinned {
  explicit Pinned(size_t size) {
    cudaHostAlloc(&data, size * sizeof(int), cudaHostAllocPortable | cudaHostAllocMapped);
  }
  ~Pinned() { cudaFreeHost(data); }
  int* data = nullptr;
};

void test_memory() {
  const simt::Live before = simt::live();
  {
    Array<uint32_t> array(5);
    const std::vector<uint32_t> values = array.read();
    check(values[4] == simt::poison_word && std::isnan(__uint_as_float(values[4])) &&
          reinterpret_cast<uintptr_t>(static_cast<uint32_t*>(array)) % 256 == 0,
          "fresh memory is poison");
    Pinned pinned(3);
    cudaPointerAttributes attributes;
    check(cudaPointerGetAttributes(&attributes, pinned.data + 1) == cudaSuccess &&
          attributes.type == cudaMemoryTypeHost, "pinned");
    check(cudaPointerGetAttributes(&attributes, array) == cudaSuccess && attributes.type == cudaMemoryTypeDevice,
          "device");
    check(cudaPointerGetAttributes(&attributes, &attributes) == cudaSuccess &&
          attributes.type == cudaMemoryTypeUnregistered, "pageable");
    int* mapped = nullptr;
    check(cudaHostGetDevicePointer(&mapped, pinned.data, 0) == cudaSuccess && mapped == pinned.data, "mapped");
    check(cudaMemcpy(array, values.data(), 24, cudaMemcpyHostToDevice) == cudaErrorInvalidValue, "copy beyond the end");
    check(cudaMemcpy(array, values.data(), 20, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue,
          "copy in the wrong direction");
    check(cudaMemset(array, 0, 21) == cudaErrorInvalidValue && cudaMemset(array, 0, 20) == cudaSuccess &&
          array.read()[4] == 0, "set");
    check(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess, "last error");
    check(simt::live().allocations == before.allocations + 2 && simt::live().bytes == before.bytes + 32, "live");
    const uint32_t rows[] = {1, 2, 3, 4};
    Stream stream;
    cudaMemcpy2DAsync(array, 12, rows, 8, 8, 2, cudaMemcpyHostToDevice, stream);
    cudaMemset2DAsync(static_cast<uint32_t*>(array) + 1, 12, 1, 1, 2, stream);
    cudaStreamSynchronize(stream);
    check(array.read() == std::vector<uint32_t>{1, 1, 0, 3, 1}, "rows");
    check(cudaFree(pinned.data) == cudaErrorInvalidValue, "free of the wrong kind");
  }
  const simt::Live after = simt::live();
  check(after.allocations == before.allocations && after.bytes == before.bytes && after.streams == before.streams,
        "nothing left");
}

void test_streams() {
  Array<int> x(std::vector<int>{1, 0});
  Pinned result(1);
  Stream a, b;
  Event started, added, done;
  *result.data = -1;
  cudaEventRecord(started, a);
  a.add(x, 3);
  cudaEventRecord(added, a);
  cudaStreamWaitEvent(b, added);
  b.add(x, 10);
  cudaMemcpyAsync(result.data, x, sizeof(int), cudaMemcpyDeviceToHost, b);
  cudaEventRecord(done, b);
  check(*result.data == -1 && x.read()[0] == 1, "nothing has run before something waits");
  check(cudaEventQuery(done) == cudaErrorNotReady, "not ready");
  check(cudaEventSynchronize(done) == cudaSuccess && *result.data == (1 * 2 + 3) * 2 + 10, "events order streams");
  float milliseconds = -1;
  check(cudaEventElapsedTime(&milliseconds, started, done) == cudaSuccess && milliseconds >= 0, "elapsed");

  // Without the event the streams have no order.
  a.add(x, 3);
  b.add(x, 10);
  cudaStreamSynchronize(b);
  cudaStreamSynchronize(a);
  check(x.read()[0] == (20 * 2 + 10) * 2 + 3, "no order without an event");

  // Pinned memory is read when the copy runs.
  *result.data = 5;
  cudaMemcpyAsync(x, result.data, sizeof(int), cudaMemcpyHostToDevice, a);
  *result.data = 6;
  int polls = 0;
  while (cudaStreamQuery(a) == cudaErrorNotReady) polls++;
  check(x.read()[0] == 6 && polls == 1, "pinned memory is read late");

  Stream blocking(cudaStreamDefault);
  blocking.add(x, 100);
  check(x.read()[0] == 112, "the legacy stream waits for blocking streams");
}

void test_threads() {
  std::vector<float> in(256 * 4, 1.0f);
  Array<float> x(in), y(in.size());
  std::vector<int> good(4);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; t++) {
    threads.emplace_back([&, t] {
      Array<float> out(256 * 4);
      for (int i = 0; i < 20; i++) {
        Stream stream;
        Queue queue;
        queue.stream = stream;
        launch(queue, sum_kernel, 4, 256, 32, static_cast<const float*>(x), static_cast<float*>(out));
        good[t] += cudaStreamSynchronize(stream) == cudaSuccess && out.read() == std::vector<float>(256 * 4, 256.0f);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  check(good == std::vector<int>(4, 20), "launches from several threads");

  // Two threads wait for streams that wait for each other, in turns.
  Array<int> number(std::vector<int>{0});
  Stream a, b;
  std::vector<Event> events(40);
  for (int i = 0; i < 40; i++) {
    const Stream &from = i % 2 ? a : b, &to = i % 2 ? b : a;
    from.add(number, 1);
    cudaEventRecord(events[static_cast<size_t>(i)], from);
    cudaStreamWaitEvent(to, events[static_cast<size_t>(i)]);
    cudaMemsetAsync(number, 0, sizeof(int), to);
  }
  std::thread other([&] { cudaStreamSynchronize(a); });
  cudaStreamSynchronize(b);
  other.join();
  check(number.read()[0] == 0, "two threads, two streams");
}

// -------------------------------------------------------------------------------------------------------------- graphs

void test_graphs() {
  const simt::Live before = simt::live();
  {
    Array<int> x(std::vector<int>{1, 1, 0});
    Stream main, side;
    Event fork, join;
    int value = 3;
    check(cudaStreamBeginCapture(main, cudaStreamCaptureModeRelaxed) == cudaSuccess, "begin");
    main.add(x, value);
    cudaEventRecord(fork, main);
    cudaStreamWaitEvent(side, fork);
    side.add(x + 1, 7);
    cudaMemcpyAsync(x + 2, x + 1, sizeof(int), cudaMemcpyDeviceToDevice, side);
    main.add(x, 5);
    cudaEventRecord(join, side);
    cudaStreamWaitEvent(main, join);
    main.add(x + 2, 1);
    cudaStreamCaptureStatus status;
    check(cudaStreamIsCapturing(side, &status) == cudaSuccess && status == cudaStreamCaptureStatusActive,
          "the side stream captures");
    value = 100;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    check(cudaStreamEndCapture(main, &graph) == cudaSuccess, "end");
    check(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess,
          "instantiate");
    check(x.read() == std::vector<int>{1, 1, 0}, "capture runs nothing");
    for (int i = 0; i < 2; i++) {
      check(cudaGraphLaunch(exec, main) == cudaSuccess, "graph launch");
      cudaStreamSynchronize(main);
    }
    check(x.read() == std::vector<int>{(((1 * 2 + 3) * 2 + 5) * 2 + 3) * 2 + 5, 25, 51}, "replay");
    check(cudaGraphExecDestroy(exec) == cudaSuccess, "destroy");

    // Two branches that both write have no order.
    int first = 0;
    for (int i = 0; i < 20; i++) {
      cudaMemset(x, 0, sizeof(int));
      cudaStreamBeginCapture(main, cudaStreamCaptureModeThreadLocal);
      cudaEventRecord(fork, main);
      cudaStreamWaitEvent(side, fork);
      main.add(x, 1);
      side.add(x, 5);
      cudaEventRecord(join, side);
      cudaStreamWaitEvent(main, join);
      cudaStreamEndCapture(main, &graph);
      cudaGraphInstantiate(&exec, graph, 0);
      cudaGraphLaunch(exec, main);
      cudaStreamSynchronize(main);
      first += x.read()[0] == 7;
      cudaGraphDestroy(graph);
      cudaGraphExecDestroy(exec);
    }
    check(first > 0 && first < 20, "branches run in any order");

    cudaStreamBeginCapture(main, cudaStreamCaptureModeRelaxed);
    cudaEventRecord(fork, main);
    cudaStreamWaitEvent(side, fork);
    side.add(x, 5);
    check(cudaStreamEndCapture(main, &graph) == cudaErrorStreamCaptureUnjoined && !graph, "unjoined");

    void* memory = nullptr;
    cudaStreamBeginCapture(main, cudaStreamCaptureModeRelaxed);
    check(cudaMalloc(&memory, 4) == cudaSuccess && cudaFree(memory) == cudaSuccess,
          "relaxed capture permits allocations");
    check(cudaStreamSynchronize(main) == cudaErrorStreamCaptureUnsupported, "waiting for a capture");
    check(cudaStreamEndCapture(main, &graph) == cudaErrorStreamCaptureInvalidated, "invalidated");
    cudaStreamBeginCapture(main, cudaStreamCaptureModeGlobal);
    check(cudaMalloc(&memory, 4) == cudaErrorStreamCaptureUnsupported, "global capture forbids allocations");
    check(cudaStreamEndCapture(main, &graph) == cudaErrorStreamCaptureInvalidated, "invalidated by an allocation");
    cudaGetLastError();
  }
  const simt::Live after = simt::live();
  check(after.graphs == before.graphs && after.executables == before.executables && after.events == before.events,
        "no graphs left");
}

// -------------------------------------------------------------------------------------------------------------- faults

simt::Settings failing(simt::Fault fault, int64_t nth, cudaError_t error) {
  simt::Settings settings;
  settings.fault = fault;
  settings.nth = nth;
  settings.error = error;
  return settings;
}

void test_faults() {
  simt::Settings settings;
  int count = -1, version = -1;
  settings.devices = 0;
  simt::configure(settings);
  check(cudaGetDeviceCount(&count) == cudaErrorNoDevice && count == 0, "no device");
  settings.devices = 2;
  settings.major = 8;
  settings.minor = 6;
  simt::configure(settings);
  cudaDeviceProp properties;
  check(cudaGetDeviceCount(&count) == cudaSuccess && count == 2, "two devices");
  check(cudaGetDeviceProperties(&properties, 1) == cudaSuccess && properties.major == 8 && properties.minor == 6,
        "capability");
  check(cudaSetDevice(2) == cudaErrorInvalidDevice && cudaSetDevice(1) == cudaSuccess &&
        cudaSetDevice(0) == cudaSuccess, "set device");
  settings.driver = 12040;
  simt::configure(settings);
  check(cudaGetDeviceCount(&count) == cudaErrorInsufficientDriver, "driver too old");
  check(cudaDriverGetVersion(&version) == cudaSuccess && version == 12040, "driver's version");

  settings = {};
  settings.memory = 1000;
  simt::configure(settings);
  void *first = nullptr, *second = nullptr;
  check(cudaMalloc(&first, 600) == cudaSuccess && cudaMalloc(&second, 500) == cudaErrorMemoryAllocation && !second,
        "memory limit");
  cudaFree(first);
  check(cudaMalloc(&second, 500) == cudaSuccess && cudaFree(second) == cudaSuccess, "memory is there again");

  simt::configure(failing(simt::Fault::allocation, 2, cudaErrorMemoryAllocation));
  check(cudaMalloc(&first, 4) == cudaSuccess && cudaHostAlloc(&second, 4, 0) == cudaErrorMemoryAllocation &&
            cudaMalloc(&second, 4) == cudaSuccess, "second allocation");
  cudaFree(first);
  cudaFree(second);

  Array<int> x(std::vector<int>{0});
  Stream stream;
  simt::configure(failing(simt::Fault::launch, 2, cudaErrorLaunchOutOfResources));
  Queue queue;
  queue.stream = stream;
  launch(queue, add_kernel, 1, 32, 0, static_cast<int*>(x), 1);
  check(queue.error == cudaSuccess, "first launch");
  launch(queue, add_kernel, 1, 32, 0, static_cast<int*>(x), 1);
  check(queue.error == cudaErrorLaunchOutOfResources, "second launch");
  check(cudaStreamSynchronize(stream) == cudaSuccess && x.read()[0] == 1, "goes on after a refused launch");

  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
  stream.add(x, 1);
  stream.add(x, 1);
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  simt::configure(failing(simt::Fault::launch, 3, cudaErrorLaunchFailure));
  check(cudaGraphLaunch(exec, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess, "first replay");
  check(cudaGraphLaunch(exec, stream) == cudaSuccess, "a failure comes late");
  check(cudaStreamSynchronize(stream) == cudaErrorLaunchFailure, "failure of a kernel in a graph");
  check(cudaMalloc(&first, 4) == cudaErrorLaunchFailure && cudaGetLastError() == cudaErrorLaunchFailure &&
            cudaGetLastError() == cudaErrorLaunchFailure, "the device is lost");
  check(cudaGraphExecDestroy(exec) == cudaErrorLaunchFailure && simt::live().executables == 0,
        "a lost device's objects can be given back");

  simt::configure(failing(simt::Fault::call, 2, cudaErrorECCUncorrectable));
  check(cudaStreamSynchronize(stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaErrorECCUncorrectable &&
            cudaStreamSynchronize(stream) == cudaErrorECCUncorrectable, "second call");
  simt::configure({});
  check(cudaStreamSynchronize(stream) == cudaSuccess && x.read()[0] == 7, "works again");
  check(std::string(cudaGetErrorName(cudaErrorLaunchFailure)) == "cudaErrorLaunchFailure", "error's name");
}

// `path` is what DESAP_SIMT_CONTROL names.
void test_control(const std::string& path) {
  const auto write = [&](const char* text) { std::ofstream(path) << text; };
  int count = 0, version = 0;
  write("devices 3\nseed 78\n");
  check(cudaGetDeviceCount(&count) == cudaSuccess && count == 3 && simt::settings().seed == 78, "control file");
  check(cudaDriverGetVersion(&version) == cudaSuccess && version == 13010, "environment");
  write("fail allocation 1 2\n");
  void* memory = nullptr;
  check(cudaMalloc(&memory, 4) == cudaErrorMemoryAllocation && cudaMalloc(&memory, 4) == cudaSuccess &&
        cudaFree(memory) == cudaSuccess,
        "fault from the control file");
  write("fail call 1 719\n");
  check(cudaGetDeviceCount(&count) == cudaErrorLaunchFailure && cudaGetDeviceCount(&count) == cudaErrorLaunchFailure,
        "lost by the control file");
  write("");
  check(cudaGetDeviceCount(&count) == cudaSuccess && count == 1, "empty control file");
  std::remove(path.c_str());
}

}  // namespace
}  // namespace desap::cuda

int main(int, char** argv) {
  using namespace desap::cuda;
  const std::string control = std::string(argv[0]) + ".control";
  setenv("DESAP_SIMT_CONTROL", control.c_str(), 1);
  setenv("DESAP_SIMT_DRIVER", "13010", 1);
  test_indices();
  test_sums();
  test_warp();
  test_half_warps();
  test_atomics();
  test_numbers();
  test_matrices();
  test_multiply<true>("mma f16");
  test_multiply<false>("mma bf16");
  test_order();
  test_poison();
  test_missing_barriers();
  test_copies();
  test_wrong_programs();
  test_exits();
  test_memory();
  test_streams();
  test_threads();
  test_graphs();
  test_faults();
  test_control(control);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
