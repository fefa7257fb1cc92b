// The two-stage selection: the k1 largest of the task scores, then the keep - k1 largest saliencies of the rest.
//
// A float maps to an unsigned whose order is the same. Radix select: up to three passes of 11 bits each count the keys
// by their next digit, from the top; the digit at which the count from above reaches k joins the prefix. Once a digit's
// keys are wanted all, everything at or above the prefix is chosen; if all 32 bits are used up, the keys equal to the
// prefix are taken in the order of their indices. Sets are bit masks in shared memory; the rank of an index in a set is
// the number of bits before it, so indices leave in ascending order.
#include <vector>

#include "kernel_run.h"
#include "kernels.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

namespace desap::cuda {
namespace {

constexpr int threads = 1024, warps = threads / warp_size;
constexpr int digit_bits = 11, digits = 1 << digit_bits;
constexpr int set_words = most_scores / 32;
static_assert(digits == 2 * threads && set_words == 2 * threads, "two a thread");

struct Shared {
  int histogram[digits];         // zero between two uses
  unsigned chosen[2][set_words];  // by task, by saliency
  unsigned equal[set_words];      // keys equal to the prefix
  int before[set_words];          // bits in the words before
  int warp_total[warps];
  int digit, wanted, available;
};

// Ascending as the scores are; -0 counts as +0, NaN as the smallest.
__device__ __forceinline__ unsigned key_of(float score) {
  if (score != score) return 0;
  const unsigned word = __float_as_uint(score == 0 ? 0.0f : score);
  return word & 0x80000000u ? ~word : word | 0x80000000u;
}

__device__ __forceinline__ bool contains(const unsigned* set, int i) { return set[i / 32] >> i % 32 & 1; }

// The sum of `value` over the threads before this one. A barrier has to follow before the next call.
__device__ __forceinline__ int sum_before(int value, int* warp_total) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size;
  int sum = value;
#pragma unroll
  for (int distance = 1; distance < warp_size; distance *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, distance);
    if (lane >= distance) sum += other;
  }
  if (lane == warp_size - 1) warp_total[thread / warp_size] = sum;
  __syncthreads();
  return sum - value + reduce_warp(lane < thread / warp_size ? warp_total[lane] : 0, Sum());
}

// before[w] = the bits in the words before w. Begins and ends with a barrier.
__device__ __forceinline__ void count_bits(const unsigned* a, const unsigned* b, int size, Shared& shared) {
  const int word = 2 * static_cast<int>(threadIdx.x);
  __syncthreads();
  const auto bits = [&](int w) { return 32 * w < size ? __popc(b ? a[w] | b[w] : a[w]) : 0; };
  const int first = bits(word), before = sum_before(first + bits(word + 1), shared.warp_total);
  shared.before[word] = before;
  shared.before[word + 1] = before + first;
  __syncthreads();
}

__device__ __forceinline__ int rank_of(int i, unsigned word, const Shared& shared) {
  return shared.before[i / 32] + __popc(word & ((1u << i % 32) - 1));
}

// chosen = the k largest scores of those that take part. `place` is the first score's, for the fault. A barrier has to
// follow before `chosen` is read or the next set is chosen.
template <class TakesPart>
__device__ void choose(const float* scores, const TakesPart& takes_part, int size, int place, int k, unsigned* chosen,
                       int* fault, Shared& shared) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size;
  unsigned prefix = 0, mask = 0;
  int wanted = k;
  bool all = false;  // of the keys at the prefix all are wanted
  for (int shift = 32 - digit_bits; shift > -digit_bits && !all; shift -= digit_bits) {
    const int low = shift > 0 ? shift : 0;
    const unsigned digit_mask = (1u << (shift - low + digit_bits)) - 1;
    for (int i = thread; i < size; i += threads) {
      if (!takes_part(i)) continue;
      const float score = scores[i];
      if (mask == 0 && score != score) atomicMin(fault, place + i);
      const unsigned key = key_of(score);
      if ((key & mask) == prefix) atomicAdd(&shared.histogram[key >> low & digit_mask], 1);
    }
    __syncthreads();
    const int digit = digits - 1 - 2 * thread;  // this thread's two digits, from the top
    const int high_count = shared.histogram[digit], low_count = shared.histogram[digit - 1];
    shared.histogram[digit] = shared.histogram[digit - 1] = 0;
    const int above = sum_before(high_count + low_count, shared.warp_total);
    if (above < wanted && wanted <= above + high_count + low_count) {
      const bool high = wanted <= above + high_count;
      shared.digit = high ? digit : digit - 1;
      shared.wanted = high ? wanted - above : wanted - above - high_count;
      shared.available = high ? high_count : low_count;
    }
    if (k == 0) break;  // all that was wanted were the NaNs
    __syncthreads();
    prefix |= static_cast<unsigned>(shared.digit) << low;
    mask |= digit_mask << low;
    wanted = shared.wanted;
    all = wanted == shared.available;
  }

  // whole warps, for the ballots
  const bool ties = k > 0 && !all;
  for (int i = thread; i - lane < size; i += threads) {
    const bool part = k > 0 && i < size && takes_part(i);
    const unsigned key = part ? key_of(scores[i]) & mask : 0;
    const unsigned word = __ballot_sync(0xffffffffu, part && (key > prefix || (all && key == prefix)));
    const unsigned equal = __ballot_sync(0xffffffffu, part && key == prefix);
    if (lane == 0) {
      chosen[i / 32] = word;
      shared.equal[i / 32] = equal;
    }
  }
  if (!ties) return;
  count_bits(shared.equal, nullptr, size, shared);
  for (int i = thread; i - lane < size; i += threads) {
    const unsigned equal = shared.equal[i / 32];
    const bool taken = i < size && contains(shared.equal, i) && rank_of(i, equal, shared) < wanted;
    const unsigned word = __ballot_sync(0xffffffffu, taken);
    if (lane == 0) chosen[i / 32] |= word;
  }
}

__global__ void __launch_bounds__(threads) select_kernel(const Select select) {
  Shared& shared = ptx::shared<Shared>();
  ptx::release_successor();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size;
  shared.histogram[2 * thread] = shared.histogram[2 * thread + 1] = 0;
  __syncthreads();
  ptx::wait_for_predecessor();
  stamp(select.stamp);

  const Image image = select.images[blockIdx.x];
  const int size = image.patches;
  const uint8_t* excluded = select.excluded ? select.excluded + image.patch : nullptr;
  unsigned* by_task = shared.chosen[0];
  unsigned* by_saliency = shared.chosen[1];
  const auto at_all = [&](int i) { return !excluded || !excluded[i]; };
  choose(select.task + image.patch, at_all, size, image.patch, image.task_keep, by_task, select.task_fault, shared);
  __syncthreads();
  const float* saliency = select.saliency.get();
  const auto among_the_rest = [&](int i) { return saliency && at_all(i) && !contains(by_task, i); };
  choose(saliency ? saliency + image.patch : nullptr, among_the_rest, size, image.patch, saliency ? image.keep - image.task_keep : 0,
         by_saliency, select.saliency_fault, shared);

  count_bits(by_task, by_saliency, size, shared);
  for (int i = thread; i < size; i += threads) {
    const unsigned task = by_task[i / 32], word = task | by_saliency[i / 32];
    if (!(word >> lane & 1)) continue;
    const int64_t at = image.kept + rank_of(i, word, shared);
    select.indices[at] = i;
    select.source[at] = task >> lane & 1 ? 0 : 1;
  }
}

}  // namespace

void select(Queue& queue, const Select& select) {
  launch(queue, select_kernel, dim3(static_cast<unsigned>(select.extent.images)), threads, sizeof(Shared), select);
}

}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::OneImage;
using cuda::with_run;

Status select(Context& context, const float* task, const float* saliency, int64_t size, int64_t keep, int64_t task_keep,
              int32_t* indices, uint8_t* source) {
  if (size > cuda::most_scores) return {Code::unsupported, "scores"};
  return with_run(context, "select", [&](KernelRun& run) -> Status {
    const OneImage image(run, size, false, 0, keep, task_keep);
    cuda::Select select{};
    select.images = image.record;
    select.extent = image.extent;
    select.task = task ? run.upload(task, size) : run.upload(std::vector<float>(static_cast<size_t>(size)).data(), size);
    if (saliency) select.saliency = run.upload(saliency, size);
    select.indices = run.array<int>(keep);
    select.source = run.array<uint8_t>(keep);
    select.task_fault = run.fault();
    select.saliency_fault = run.fault();
    cuda::select(run.queue(), select);
    DESAP_TRY(run.check(select.task_fault, "task"));
    DESAP_TRY(run.check(select.saliency_fault, "saliency"));
    run.download(select.indices, keep, indices);
    run.download(select.source, keep, source);
    return run.wait();
  });
}

}  // namespace desap
