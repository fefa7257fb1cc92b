// Time and memory of the block head at the widths of real encoders: Qwen2.5-VL's 1280, rotated, and SigLIP so400m's 1152. The processors'
// time beside the clock's tells a machine that others use, too.
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

void run(const ContextOptions& options, const BlockShape& shape, int64_t rows, bool rotates, int rounds) {
  Context* context = nullptr;
  if (!context_create(options, &context).good()) return;
  const RandomBlock weights(shape);
  const std::shared_ptr<Block> block = new_block(*context, weights);
  Sequence s(weights, rows, rotates, rows / 4, 99);
  double best = 1e30, processors = 1e30;
  BlockTimings stages{};
  for (int i = 0; i < rounds; i++) {
    BlockTimings t{};
    const std::clock_t used = std::clock();
    const auto start = std::chrono::steady_clock::now();
    check(analyze(*context, *block, {&s}, Encoding::qq, &t).good(), "analyze");
    const double time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    if (time < best) best = time, stages = t;
    processors = std::min(processors, static_cast<double>(std::clock() - used) * 1000 / CLOCKS_PER_SEC);
  }
  const double array = static_cast<double>(rows * shape.width * 4) / 1e6, scratch = static_cast<double>(context->arena.most()) / 1e6;
  std::printf("%6ld x %ld%s: %8.1f ms, processors %.1f ms (normalize %.1f, project %.1f, attention %.1f, saliency %.1f, read-out %.1f), memory %.1f MB with hidden states and output (%.2f arrays)\n",
              static_cast<long>(rows), static_cast<long>(shape.width), shape.mlp_width ? " siglip" : "", best, processors, stages.normalize, stages.project, stages.attention, stages.saliency,
              stages.read_out, scratch + (shape.mlp_width ? 3 : 2) * array, scratch / array + (shape.mlp_width ? 3 : 2));
  context_destroy(context);
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
