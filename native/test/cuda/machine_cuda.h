// A CUDA GPU at one precision as a machine, and the error that the precision's operands allow.
#pragma once

#include "../../cuda/context.h"
#include "../harness.h"

namespace desap::test {

constexpr Precision precisions[] = {Precision::fp32, Precision::fp16, Precision::bf16};
inline const char* name_of(Precision precision) {
  return precision == Precision::fp32 ? "fp32" : precision == Precision::fp16 ? "fp16" : "bf16";
}

// Operands keep 22, 11 and 8 bits (float32: 24). The tolerances of the cases are about 50 units of float32's last place
// for sums of thousands of products; the tensor cores truncate their sums, which fp32 feels too.
inline double operand_error(Precision precision) {
  return precision == Precision::fp32 ? 8 : precision == Precision::fp16 ? 400 : 3200;
}

// `small`: only shapes that an emulated GPU or one under a sanitizer can do. A second context has another number of
// streams.
inline Machine machine_of(const cuda::DeviceInfo& device, Precision precision, bool small) {
  Machine machine;
  machine.name = device.name + ", " + name_of(precision);
  machine.precision = precision;
  machine.operand_error = operand_error(precision);
  if (small) machine.most_work = 1e6;
  for (int streams : {1, 2}) {
    if (small && streams == 2) continue;
    Context* context = nullptr;
    if (check(cuda::context_create({device.index, precision, streams}, &context).good(), "context")) {
      machine.contexts.emplace_back(context, cuda::context_destroy);
    }
  }
  return machine;
}

}  // namespace desap::test
