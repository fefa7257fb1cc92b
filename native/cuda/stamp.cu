// The time on the device, between two kernels.
#include "kernels.cuh"
#include "ptx.cuh"

namespace desap::cuda {

namespace {

__global__ void __launch_bounds__(32) note_time_kernel(Stamp time) {
  ptx::wait_for_predecessor();
  ptx::release_successor();
  stamp(time);
}

}  // namespace

void note_time(Queue& queue, Stamp time) { launch(queue, note_time_kernel, dim3(1), 32, 0, time); }

}  // namespace desap::cuda
