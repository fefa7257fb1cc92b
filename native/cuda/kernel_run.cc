#include "kernel_run.h"

#include <cmath>

namespace desap::cuda {

Scaled scaled(KernelRun& run, ConstMatrix x, int heads, int padded_size) {
  const Scaled result{run.operand(x.rows, padded_width(int64_t{heads} * padded_size)), run.array<int>(1)};
  magnitude(run.queue(), x, result.exponent);
  to_operand(run.queue(), run.precision(), x, heads, padded_size, result.exponent, result.operand);
  return result;
}

// The scale is log2 e / sqrt(dh), without the operands' own scales and with those of the tables.
Status score_operands(KernelRun& run, ConstMatrix q, ConstMatrix k, int64_t heads, int padded_size, Rotary rotary,
                      ScoreOperands* operands) {
  const int count = static_cast<int>(heads), size = static_cast<int>(q.cols / heads);
  operands->q = scaled(run, run.upload(q), count, padded_size);
  operands->k = scaled(run, run.upload(k), count, padded_size);
  const int exponent = rotary_exponent(rotary, q.rows * size);
  if (rotary.cos) {
    float *cos = run.array<float>(q.rows * size), *sin = run.array<float>(q.rows * size);
    send_rotary(run, rotary, q.rows * size, exponent, cos, sin);
    for (const Scaled* x : {&operands->q, &operands->k})
      rotate(run.queue(), run.precision(), x->operand, q.rows, count, padded_size, size, {cos, sin});
  }
  int left = 0, right = 0;
  run.download(operands->q.exponent, 1, &left);
  DESAP_TRY(run.fetch(operands->k.exponent, &right));
  constexpr double log2_e = 1.4426950408889634;
  const double value = std::ldexp(log2_e / std::sqrt(static_cast<double>(size)), 2 * exponent - left - right);
  operands->scale = run.upload(std::vector<float>(static_cast<size_t>(heads), static_cast<float>(value)).data(), heads);
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
