// unit_rows.cu against float64.
#include "operands.h"

namespace desap::test {
namespace {

DESAP_CUDA_CASE(unit_rows) {
  Random random(4);
  for (int64_t width : row_widths) {
    for (int64_t gap : {0, 1, 4}) {
      const int64_t rows = 4;
      Floats x = random.floats(rows * width, 7);
      for (size_t i = 0; i < static_cast<size_t>(width); i++) x[i] = 0;
      const DeviceRows device(x, rows, width, gap), y(rows, width, gap);
      const DeviceFault fault;
      cuda::unit_rows(queue, device, y, fault.get());
      const std::string what = "width " + std::to_string(width) + " gap " + std::to_string(gap);
      const Floats actual = y.dense();
      check_close(actual, reference::unit_rows({x, rows, width}).data, 1e-6, what);
      check(fault.read() == INT_MAX, what + ": no fault");
      cuda::unit_rows(queue, device, device, fault.get());
      check(same_bits(device.dense(), actual), what + ": in place");
    }
  }
  for (float bad : {NAN, INFINITY, 1e20f}) {
    Floats x = random.floats(6 * 40);
    x[3 * 40 + 7] = bad, x[5 * 40] = bad;
    const DeviceRows device(x, 6, 40, 0);
    const DeviceFault fault;
    cuda::unit_rows(queue, device, device, fault.get());
    check(fault.read() == 3, "not finite: " + std::to_string(bad));
  }
}

}  // namespace
}  // namespace desap::test
