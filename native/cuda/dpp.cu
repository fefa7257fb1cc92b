// Greedy MAP of a determinantal point process, a launch a pick: a warp computes its row's next factor and offers the row with its gain.
// The best offer is the next pick. Its row of the kernel is computed as it is needed: nothing of P x P is stored.
//
// Once the best gain is rounding noise, the picks are the rest's largest g^2. All rows offer both: gains only fall, so the step can be
// told from the picks of the gains alone.
#include <cmath>
#include <cstring>
#include <vector>

#include "greedy.cuh"
#include "kernel_run.h"

namespace desap::cuda {
namespace {

constexpr float least_gain = 1e-5f;    // of the first one
constexpr float norm_of_zero = 1e12f;  // inverse_norms' of a row of length 1e-12 or less, but for 0, whose is 0

struct Dpp {
  const float* x;  // [rows, width]
  int64_t rows, width;
  const float *inverse_norm, *relevance;
  float blend;
  float* factors;       // [P, count]
  float* gains;         // [P], minus infinity for a row that is picked
  Pick *gained, *rest;  // [count]
  int64_t count;
};

struct Offers {
  Pick gained[greedy_warps], rest[greedy_warps];
};

__device__ __forceinline__ bool is_noise(Pick pick, Pick first) { return !(score_of(pick) > least_gain * score_of(first)); }

__global__ void __launch_bounds__(greedy_threads) dpp_step(const Dpp d, const int step) {
  Offers& offers = ptx::shared<Offers>();
  ptx::release_successor();
  ptx::wait_for_predecessor();
  const int i = static_cast<int>(blockIdx.x) * greedy_warps + static_cast<int>(threadIdx.x) / warp_size;
  const bool first_lane = threadIdx.x % warp_size == 0;
  Pick gained = 0, rest = 0;
  if (i < d.rows) {
    const float g = d.relevance[i], norm = d.inverse_norm[i];
    float gain;
    if (step == 0) {
      gain = norm > 0 && norm < norm_of_zero ? 1 - d.blend + d.blend * (g * g) : 0;
    } else {
      gain = d.gains[i];
      const Pick last = d.gained[step - 1];
      const bool noise = is_noise(last, d.gained[0]);
      const int j = row_of(noise ? d.rest[step - 1] : last);
      if (i == j) {
        gain = -INFINITY;
      } else if (!noise && gain > -INFINITY) {
        float* own = d.factors + i * d.count;
        const float cosine = warp_dot(d.x + i * d.width, d.x + j * d.width, d.width) * (norm * d.inverse_norm[j]);
        const float known = warp_dot(own, d.factors + j * d.count, step - 1);
        const float factor = (cosine * (d.blend * d.relevance[j] * g + (1 - d.blend)) - known) / sqrtf(score_of(last));
        if (first_lane) own[step - 1] = factor;
        gain -= factor * factor;
      }
    }
    __syncwarp();
    if (first_lane) d.gains[i] = gain;
    if (gain > -INFINITY) {
      gained = pick_of(gain, i);
      rest = pick_of(g * g, i);
    }
  }
  offer(gained, d.gained + step, offers.gained);
  offer(rest, d.rest + step, offers.rest);
}

}  // namespace
}  // namespace desap::cuda

// ---- For the host ------------------------------------------------------------------------------------------------------

namespace desap {

using cuda::KernelRun;
using cuda::Pick;
using cuda::with_run;

Status dpp(Context& context, ConstMatrix x, const float* relevance, float blend, int64_t count, int32_t* picked) {
  return with_run(context, "dpp", [&](KernelRun& run) -> Status {
    const Matrix rows = run.upload(x);
    float* inverse_norm = run.array<float>(x.rows);
    int* fault = run.fault();
    cuda::inverse_norms(run.queue(), rows, inverse_norm, fault);
    DESAP_TRY(run.check(fault, "x"));
    for (int64_t i = 0; i < x.rows; i++) {
      if (!std::isfinite(relevance[i] * relevance[i])) return {Code::not_finite, "relevance", i};
    }
    if (count == 0) return {};
    const size_t size = static_cast<size_t>(count);
    std::vector<Pick> gained(size, 0), rest(size, 0);
    const cuda::Dpp d{rows.data, rows.rows, rows.cols, inverse_norm, run.upload(relevance, x.rows), blend, run.array<float>(x.rows * count), run.array<float>(x.rows),
                      run.upload(gained.data(), count), run.upload(rest.data(), count), count};
    for (int step = 0; step < count; step++) {
      launch(run.queue(), cuda::dpp_step, dim3(cuda::blocks_of(x.rows, cuda::greedy_warps)), cuda::greedy_threads, sizeof(cuda::Offers), d, step);
    }
    run.download(d.gained, count, gained.data());
    run.download(d.rest, count, rest.data());
    DESAP_TRY(run.wait());
    const auto gain = [&](size_t k) {
      const unsigned word = cuda::from_order(static_cast<unsigned>(gained[k] >> 32));
      float value;
      std::memcpy(&value, &word, sizeof value);
      return value;
    };
    for (size_t k = 0; k < size; k++) picked[k] = cuda::row_of(gain(k) > cuda::least_gain * gain(0) ? gained[k] : rest[k]);
    return {};
  });
}

}  // namespace desap
