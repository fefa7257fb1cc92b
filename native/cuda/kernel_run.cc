#include "kernel_run.h"

#include <cmath>

namespace desap::cuda {

Scaled scaled(KernelRun& run, ConstMatrix x, int heads, int padded_size) {
  const Scaled result{run.operand(x.rows, padded_width(int64_t{heads} * padded_size)), run.array<int>(1)};
  magnitude(run.queue(), x, result.exponent);
  to_operand(run.queue(), run.precision(), x, heads, padded_size, result.exponent, result.operand);
  return result;
}

Status score_scale(KernelRun& run, const Scaled& q, const Scaled& k, int64_t heads, int64_t size, const float** scale) {
  int left = 0, right = 0;
  run.download(q.exponent, 1, &left);
  DESAP_TRY(run.fetch(k.exponent, &right));
  constexpr double log2_e = 1.4426950408889634;
  const double value = std::ldexp(log2_e / std::sqrt(static_cast<double>(size)), -(left + right));
  *scale = run.upload(std::vector<float>(static_cast<size_t>(heads), static_cast<float>(value)).data(), heads);
  return {};
}

int padded_head_size_of(int64_t width, int64_t heads) {
  const int64_t size = width / heads;
  return size > largest_head_size ? -1 : padded_head_size(static_cast<int>(size));
}

}  // namespace desap::cuda
