#include "kernel_run.h"

#include <cmath>

namespace desap::cuda {

Scaled scaled(KernelRun& run, ConstMatrix x, int heads, int padded_size) {
  const Scaled result{run.operand(x.rows, padded_width(int64_t{heads} * padded_size)), run.array<int>(1)};
  magnitude(run.queue(), x, result.exponent);
  to_operand(run.queue(), run.precision(), x, heads, padded_size, result.exponent, result.operand);
  return result;
}

Status score_scale(KernelRun& run, const Scaled& q, const Scaled& k, int64_t heads, int64_t size, int exponent,
                   const float** scale) {
  int left = 0, right = 0;
  run.download(q.exponent, 1, &left);
  DESAP_TRY(run.fetch(k.exponent, &right));
  constexpr double log2_e = 1.4426950408889634;
  const double value = std::ldexp(log2_e / std::sqrt(static_cast<double>(size)), exponent - left - right);
  *scale = run.upload(std::vector<float>(static_cast<size_t>(heads), static_cast<float>(value)).data(), heads);
  return {};
}

int rotary_exponent(Rotary table, int64_t count) {
  float largest = 0;
  for (const float* one : {table.cos, table.sin}) {
    for (int64_t i = 0; one && i < count; i++) largest = std::fmax(largest, std::fabs(one[i]));
  }
  int exponent = 0;
  if (std::isfinite(largest)) std::frexp(largest, &exponent);
  return largest <= 1 ? 0 : exponent;
}

void send_rotary(KernelRun& run, Rotary table, int64_t count, int exponent, float* cos, float* sin) {
  const auto scaled = [&](const float* from, float* to) {
    if (exponent == 0) return run.send(from, count, to);
    std::vector<float> values(from, from + count);
    for (float& x : values) x = std::ldexp(x, -exponent);
    run.send(values.data(), count, to);
  };
  scaled(table.cos, cos);
  scaled(table.sin, sin);
}

int padded_head_size_of(int64_t width, int64_t heads) {
  const int64_t size = width / heads;
  return size > largest_head_size ? -1 : padded_head_size(static_cast<int>(size));
}

}  // namespace desap::cuda
