// What the block head takes of a context's memory: arrays [N, D] beside the hidden states and the output.
#include "../cpu/dispatch.h"
#include "random_sequence.h"

namespace desap::test {
namespace {

// The share that grows with N.
double arrays_of(const Machine& machine, const RandomBlock& weights, Encoding encoding, bool own) {
  double most[2];
  const int64_t rows[] = {256, 512};
  for (int i : {0, 1}) {
    Context context(*machine.one().kernels, 2, machine.one().bfloat16);
    const std::shared_ptr<Block> block = new_block(context, weights);
    Sequence s(weights, rows[i], true, rows[i] / 4, 1);
    const BlockStates states = s.states();
    BlockOutput output = s.output();
    if (!own) output.self_attention = nullptr;
    check(block && block->analyze(context, &states, 1, encoding, &output, nullptr).good(), "analyze");
    most[i] = static_cast<double>(context.arena.most());
  }
  return (most[1] - most[0]) / static_cast<double>((rows[1] - rows[0]) * weights.config.width * static_cast<int64_t>(sizeof(float)));
}

// Beside the hidden states and the outputs: with its own attention a block finds room for k in that one's output, where the other attention
// does not read k.
DESAP_CASE(block_memory_is_linear) {
  if (machine.name == "scalar" || machine.small()) return;  // the same code, and slow
  for (const int64_t inner : {0, 64}) {
    const RandomBlock weights({320, 16, Norm::layer, true, inner});
    for (Encoding encoding : encodings) {
      const bool reads_k = encoding == Encoding::kk || encoding == Encoding::qk;
      for (bool own : {false, true}) {
        const double arrays = arrays_of(machine, weights, encoding, own), most = !own ? 3.6 : reads_k ? 3.8 : 2.7;
        check(arrays < most, "encoding " + std::to_string(static_cast<int>(encoding)) + (own ? ", own attention: " : ": ") + std::to_string(arrays) + " arrays [N, D]");
      }
    }
  }
}

}  // namespace
}  // namespace desap::test
