// rms_norm.cu against float64. What the block runs in its place is checked in block_check.cc.
#include "../random_block.h"
#include "operands.h"

namespace desap::test {
namespace {

DESAP_CUDA_CASE(rms_norm) {
  Random random(3);
  for (int64_t width : row_widths) {
    for (int64_t gap : {0, 3, 4}) {
      const int64_t rows = 5;
      const Floats x = random.floats(rows * width, 20), weight = random.floats(width);
      const DeviceRows device(x, rows, width, gap), y(rows, width, gap);
      const DeviceArray<float> device_weight(weight);
      const DeviceFault fault;
      cuda::rms_norm(queue, device, device_weight.get(), 1e-6f, y, fault.get());
      const std::string what = "width " + std::to_string(width) + " gap " + std::to_string(gap);
      const Floats actual = y.dense();
      check_close(actual, rms_norm64({x, rows, width}, weight, 1e-6).data, 1e-6, what);
      check(fault.read() == INT_MAX, what + ": no fault");
      cuda::rms_norm(queue, device, device_weight.get(), 1e-6f, device, fault.get());
      check(same_bits(device.dense(), actual), what + ": in place");
    }
  }
  for (float bad : {NAN, INFINITY, -INFINITY, 1e25f}) {
    Floats x = random.floats(6 * 40);
    x[4 * 40 + 7] = bad, x[5 * 40] = bad;
    const DeviceRows device(x, 6, 40, 0);
    const DeviceArray<float> ones(Floats(40, 1));
    const DeviceFault fault;
    cuda::rms_norm(queue, device, ones.get(), 1e-5f, device, fault.get());
    check(fault.read() == 4, "not finite: " + std::to_string(bad));
  }
}

}  // namespace
}  // namespace desap::test
