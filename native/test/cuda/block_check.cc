// The last block of an encoder on a GPU: memory that the GPU reads and writes in place, how much memory it takes, and what it refuses.
#include <thread>

#include "../../cuda/context.h"
#include "../random_sequence.h"
#ifdef DESAP_SIMT
#include "../simt/simt_control.h"
#endif

namespace desap::test {
namespace {

// Page-locked memory is read and written where it is; its place changes no bit.
DESAP_CASE(block_page_locked_memory) {
  const RandomBlock weights({64, 2, Norm::layer, true, 0});
  const std::shared_ptr<Block> block = new_block(machine.one(), weights);
  Sequence plain(weights, 25, false, 25, 1);
  const size_t bytes = plain.hidden.size() * sizeof(float);
  char *in = static_cast<char*>(cuda::host_allocate(bytes + 64)), *out = static_cast<char*>(cuda::host_allocate(bytes));
  if (!block || !check(in && out, "page-locked memory")) return;
  check(analyze(machine.one(), *block, {&plain}, Encoding::qq).good(), "plain");
  for (int64_t offset : {0, 4, 64}) {
    std::memcpy(in + offset, plain.hidden.data(), bytes);
    BlockStates states = plain.states();
    states.hidden.data = in + offset;
    BlockOutput output{};
    output.attention = reinterpret_cast<float*>(out);
    check(block->analyze(machine.one(), &states, 1, Encoding::qq, &output, nullptr).good(), "pinned");
    check(std::memcmp(out, plain.attention.data(), bytes) == 0, "the same bits");
  }
  cuda::host_free(in);
  cuda::host_free(out);
}

DESAP_CASE(block_two_threads_and_no_context) {
  const RandomBlock weights({64, 2, Norm::rms, true, 24});
  Context* context = nullptr;
  const int gpu = cuda::availability().devices[0].index;
  if (!check(cuda::context_create({gpu, machine.precision, 2}, &context).good(), "context")) return;
  const std::shared_ptr<Block> block = new_block(*context, weights);
  Sequence a(weights, 25, true, 5, 1), b(weights, 30, true, 5, 2), c(weights, 25, true, 5, 1), d(weights, 30, true, 5, 2);
  if (!block || !check(analyze(*context, *block, {&a}, Encoding::qq).good() && analyze(*context, *block, {&b}, Encoding::qq).good(), "one by one")) return;
  bool good[2] = {false, false};
  std::thread other([&] { good[1] = analyze(*context, *block, {&d}, Encoding::qq).good(); });
  good[0] = analyze(*context, *block, {&c}, Encoding::qq).good();
  other.join();
  check(good[0] && good[1] && a.all() == c.all() && b.all() == d.all(), "each thread has its own results");
  cuda::context_destroy(context);
  check(analyze(machine.one(), *block, {&c}, Encoding::qq).good() && a.all() == c.all(), "a block outlives its context");
}

DESAP_CASE(block_unsupported) {
  std::shared_ptr<Block> block;
  const RandomBlock wide({130, 1, Norm::layer, true, 0}), good({32, 1, Norm::layer, true, 0});
  check(is(Block::create(machine.one(), wide.config, wide.weights(), &block), Code::unsupported, "head size", -1) && !block, "heads of 130");
  block = new_block(machine.one(), good);
  if (!block) return;
  Sequence s(good, 3, false, 3, 1);
  BlockStates many[] = {s.states(), s.states()};
  many[1].hidden.rows = 65537;
  const BlockOutput outputs[] = {s.output(), s.output()};
  const Status status = block->analyze(machine.one(), many, 2, Encoding::qq, outputs, nullptr);
  check(is(status, Code::unsupported, "rows", -1) && status.image == 1, "65537 rows");
}

#ifdef DESAP_SIMT
// All of it stays in the pool when the call is over, so what lives then is at least what was ever in use at once.
DESAP_CASE(block_memory_is_linear) {
  if (machine.precision != Precision::fp32) return;
  const RandomBlock weights({64, 2, Norm::rms, true, 0});
  int64_t taken[2];
  for (int i : {0, 1}) {
    const int64_t rows = i == 0 ? 128 : 256;
    Context* context = nullptr;
    if (!check(cuda::context_create({0, machine.precision, 1}, &context).good(), "context")) return;
    const std::shared_ptr<Block> block = new_block(*context, weights);
    const int64_t before = simt::live().bytes;
    Sequence s(weights, rows, true, rows / 4, 1);
    check(block && analyze(*context, *block, {&s}, Encoding::qk).good(), "analyze");
    taken[i] = simt::live().bytes - before;
    cuda::context_destroy(context);
  }
  const int64_t arrays = (taken[1] - taken[0]) / (128 * 64 * 4);
  check(arrays <= 10, std::to_string(arrays) + " arrays [N, D]: hidden states, outputs, four more, tables and scores");
}
#else
// Several runs: more rows than go together.
DESAP_CASE(block_of_many_rows) {
  if (machine.small()) return;
  const RandomBlock weights({1280, 16, Norm::rms, true, 0});
  const std::shared_ptr<Block> block = new_block(machine.one(), weights);
  if (!block) return;
  std::vector<std::unique_ptr<Sequence>> together, alone;
  std::vector<Sequence*> all;
  for (const int64_t rows : {4096, 4096, 1024, 16384, 64}) {
    for (auto* list : {&together, &alone}) list->push_back(std::make_unique<Sequence>(weights, rows, true, rows / 4, static_cast<uint64_t>(rows)));
    all.push_back(together.back().get());
  }
  check(analyze(machine.one(), *block, all, Encoding::qq).good(), "together");
  for (size_t i = 0; i < all.size(); i++) {
    check(analyze(machine.one(), *block, {alone[i].get()}, Encoding::qq).good() && alone[i]->all() == together[i]->all(), "sequence " + std::to_string(i));
  }
}
#endif

}  // namespace
}  // namespace desap::test
