// Time and memory of the block head at the widths of real encoders: Qwen2.5-VL's 1280, rotated, and SigLIP so400m's 1152; without its own
// attention and with it, in turn. The processors' time beside the clock's tells a machine that others use, too.
//   desap_block_bench [rounds] [threads] [bf16]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <thread>

#include "../cpu/dispatch.h"
#include "random_sequence.h"

namespace desap::test {
namespace {

// With its own attention or without: a context of its own, whose memory is its own, and the shortest times.
struct Form {
  Context* context = nullptr;
  std::shared_ptr<Block> block;
  double time = 1e30, processors = 1e30;
  BlockTimings stages{};
};

void run(const ContextOptions& options, const BlockShape& shape, int64_t rows, bool rotates, int rounds) {
  const RandomBlock weights(shape);
  Sequence s(weights, rows, rotates, rows / 4, 99);
  const BlockStates states = s.states();
  Form forms[2];
  for (Form& form : forms) {
    if (!context_create(options, &form.context).good()) return;
    form.block = new_block(*form.context, weights);
  }
  for (int i = 0; i < 2 * rounds; i++) {
    Form& form = forms[i % 2];
    BlockOutput output = s.output();
    if (i % 2 == 0) output.self_attention = nullptr;
    BlockTimings t{};
    const std::clock_t used = std::clock();
    const auto start = std::chrono::steady_clock::now();
    check(form.block->analyze(*form.context, &states, 1, Encoding::qq, &output, &t).good(), "analyze");
    const double time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    if (time < form.time) form.time = time, form.stages = t;
    form.processors = std::min(form.processors, static_cast<double>(std::clock() - used) * 1000 / CLOCKS_PER_SEC);
  }
  for (const bool own : {false, true}) {
    const Form& form = forms[own];
    const BlockTimings& stages = form.stages;
    const double array = static_cast<double>(rows * shape.width * 4), scratch = static_cast<double>(form.context->arena.most());
    const double arrays = scratch / array + (shape.mlp_width ? 3 : 2) + own;
    std::printf("%6ld x %ld%s%s: %8.1f ms, processors %.1f ms (normalize %.1f, project %.1f, attention %.1f, saliency %.1f, read-out %.1f), memory %.1f MB with hidden states and outputs (%.2f arrays)\n",
                static_cast<long>(rows), static_cast<long>(shape.width), shape.mlp_width ? " siglip" : "", own ? " with its own attention" : "", form.time, form.processors, stages.normalize,
                stages.project, stages.attention, stages.saliency, stages.read_out, arrays * array / 1e6, arrays);
    context_destroy(form.context);
  }
}

}  // namespace
}  // namespace desap::test

int main(int argc, char** argv) {
  using namespace desap;
  using namespace desap::test;
  const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 3;
  const int threads = argc > 2 ? std::max(1, std::atoi(argv[2])) : static_cast<int>(std::thread::hardware_concurrency());
  Isa isas[isa_count];
  supported_isas(isas);
  const ContextOptions options{threads, isas[0], argc > 3 && !std::strcmp(argv[3], "bf16")};
  std::printf("%s, %d threads%s\n", isa_name(isas[0]), threads, options.bfloat16 ? ", bfloat16" : "");
  for (int64_t rows : {1024, 4096}) run(options, {1280, 16, Norm::rms, true, 0}, rows, true, rounds);
  for (int64_t rows : {729, 4096}) run(options, {1152, 16, Norm::layer, true, 0}, rows, false, rounds);
  run(options, {1152, 16, Norm::layer, true, 4304}, 729, false, rounds);
}
