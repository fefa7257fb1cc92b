// self_attention.cc on operands in device memory: the context of attention.cu and the map of saliency.cu, to the bit, of a batch and of each
// of its images alone.
#include "heads.h"

namespace desap::test {
namespace {

DESAP_CUDA_CASE(self_attention_is_both_kernels) {
  const AttentionShape shapes[] = {{{2, 17, 33}, 3, 8, false}, {{65, 2}, 4, 72, false}, {{33, 130}, 1, 80, false}};
  for (Precision precision : precisions) {
    for (const AttentionShape& shape : shapes) {
      const Input input(queue, precision, shape.row_counts, shape.heads, shape.size, 1, shape.qq);
      for (int one = -1; one < static_cast<int>(shape.row_counts.size()); one++) {
        const std::unique_ptr<Heads> y = input.room();
        const cuda::Attention to_y = input.attention(*y, one);
        const DeviceArray<float> scratch(cuda::saliency_scratch(to_y.extent, shape.heads, false)), scores(to_y.extent.patches + 4);
        cuda::self_attention(queue, precision, to_y, scratch.get(), scores.get() + 4);
        const std::string what = case_of(precision, shape.heads, shape.size) + ", image " + std::to_string(one);
        check(same_bits(scores.read(), input.saliency(queue, false, one)), what + ": saliency");
        check(y->bits() == input.attend(queue, one)->bits(), what + ": context");
      }
    }
  }
}

}  // namespace
}  // namespace desap::test
