// The products that are timed at loading (gemm.h): all of them are computed. The sums begin with 0, 1, ... 15, so none stands for another.
#include "machine_cpu.h"

namespace desap::test {
namespace {

void check_products(float (*multiply)(int64_t), double product, const std::string& what) {
  const int64_t steps = 100;
  const double lanes = (multiply(0) + 0.5) / 120;  // 0 + 1 + ... + 15 in each
  const int64_t whole = static_cast<int64_t>(lanes);
  check(whole == 1 || whole == 4 || whole == 8 || whole == 16, what + ": lanes");
  check_close(Floats{multiply(steps)}, Doubles{static_cast<double>(whole) * (120 + 16 * static_cast<double>(steps) * product)}, 1e-5, what);
}

DESAP_CASE(multiply_computes_every_product) {
  if (machine.precision != Precision::fp32) return;
  const Kernels& kernels = *machine.one().kernels;
  check_products(kernels.multiply_float32, 1.0175630 * 1.0175630, "float32");
  if (kernels.multiply_bfloat16) check_products(kernels.multiply_bfloat16, 1.0078125 * 1.0078125 + 1.015625 * 1.015625, "bfloat16");
}

}  // namespace
}  // namespace desap::test
