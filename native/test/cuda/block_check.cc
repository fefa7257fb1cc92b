// The last block of an encoder on a GPU: against float64 in every form, several sequences in one call, memory that the GPU reads and
// writes in place, how much memory it takes, and what it refuses.
#include <algorithm>
#include <thread>
#include <tuple>

#include "../../cuda/context.h"
#include "../random_block.h"
#ifdef DESAP_SIMT
#include "../simt/simt_control.h"
#endif

namespace desap::test {
namespace {

constexpr Encoding encodings[] = {Encoding::qq, Encoding::kk, Encoding::vv, Encoding::qk};

// A sequence and room for its results; those start as NaN.
struct Sequence {
  Sequence(const RandomBlock& block, int64_t rows_, bool rotates, int64_t units_, uint64_t seed, float gain = 1) : rows(rows_), units(units_) {
    const int64_t d = block.config.width;
    hidden = Random(seed).floats(rows * d);
    if (rotates) rotary = std::make_unique<RandomRotary>(rows, d / block.config.heads, seed, gain);
    Random random(seed + 1);
    for (int64_t i = 0; i < rows; i++) unit.push_back(static_cast<int32_t>(i < units ? units - 1 - i : random.below(units)));
    attention.assign(hidden.size(), NAN), saliency.assign(static_cast<size_t>(rows), NAN), unit_saliency.assign(static_cast<size_t>(units), NAN);
    if (block.config.mlp_width == 0) return;
    embeddings = attention, probe_saliency = saliency, global.assign(static_cast<size_t>(d), NAN);
  }
  Rotary tables() const { return rotary ? rotary->tables() : Rotary{}; }
  BlockStates states() const { return {{hidden.data(), false, rows, nullptr}, tables(), unit.data(), units}; }
  BlockOutput output() {
    const auto wanted = [](Floats& x) { return x.empty() ? nullptr : x.data(); };
    return {attention.data(), saliency.data(), unit_saliency.data(), wanted(embeddings), wanted(global), wanted(probe_saliency)};
  }
  Floats all() const { return concatenate({attention, saliency, unit_saliency, embeddings, global, probe_saliency}); }

  int64_t rows, units;
  Floats hidden;
  std::unique_ptr<RandomRotary> rotary;
  Ints unit;
  Floats attention, saliency, unit_saliency, embeddings, global, probe_saliency;
};

std::shared_ptr<Block> new_block(Context& context, const RandomBlock& weights) {
  std::shared_ptr<Block> block;
  check(Block::create(context, weights.config, weights.weights(), &block).good(), "create");
  return block;
}

// Of many sequences in one call, in order.
Status analyze(Context& context, const Block& block, const std::vector<Sequence*>& sequences, Encoding encoding, BlockTimings* timings = nullptr) {
  std::vector<BlockStates> states;
  std::vector<BlockOutput> outputs;
  for (Sequence* one : sequences) {
    states.push_back(one->states());
    outputs.push_back(one->output());
  }
  return block.analyze(context, states.data(), static_cast<int64_t>(states.size()), encoding, outputs.data(), timings);
}

double block_tolerance(const Machine& machine) { return machine.precision == Precision::fp32 ? 1e-5 : machine.tolerance(2e-5); }

void check_sequence(const Machine& machine, const RandomBlock& weights, const Sequence& s, Encoding encoding, const std::string& what) {
  const Block64 expected = block64(weights, s.hidden, s.tables(), s.unit, s.units, encoding);
  const double tolerance = block_tolerance(machine);
  check_close(s.attention, expected.attention.data, tolerance, what + " attention");
  check_close(s.saliency, expected.saliency, tolerance, what + " saliency");
  check_close(s.unit_saliency, expected.unit_saliency, tolerance, what + " units");
  if (weights.config.mlp_width == 0) return;
  check_close(s.embeddings, expected.pooled.embeddings.data, tolerance, what + " embeddings");
  check_close(s.global, expected.pooled.global.data, tolerance, what + " global");
  check_close(s.probe_saliency, expected.pooled.saliency, tolerance, what + " probe");
}

DESAP_CASE(block_against_float64) {
  struct Form {
    BlockShape block;
    int64_t rows, units;
    bool rotates;
    float gain;
  };
  const Form forms[] = {
      {{48, 3, Norm::layer, true, 0}, 17, 17, false, 1},  {{64, 2, Norm::rms, true, 0}, 36, 9, true, 1},     {{80, 1, Norm::rms, false, 0}, 21, 5, true, 1},
      {{144, 2, Norm::layer, true, 56}, 33, 4, false, 1}, {{60, 3, Norm::layer, false, 0}, 1, 1, true, 1},   {{128, 1, Norm::layer, true, 33}, 2, 1, true, 1},
      {{33, 3, Norm::rms, true, 20}, 40, 40, false, 1},   {{96, 2, Norm::rms, true, 0}, 65, 16, true, 5.0f},
  };
  for (const Form& form : forms) {
    if (form.gain > 1 && machine.precision != Precision::fp32) continue;  // operands of 16 bits resolve no such scores
    const RandomBlock weights(form.block);
    const std::shared_ptr<Block> block = new_block(machine.one(), weights);
    if (!block) continue;
    for (Encoding encoding : encodings) {
      const std::string what = shape({form.rows, form.block.width, form.block.heads}) + ", encoding " + std::to_string(static_cast<int>(encoding));
      Sequence s(weights, form.rows, form.rotates, form.units, static_cast<uint64_t>(form.rows), form.gain);
      BlockTimings times{-1, -1, -1, -1, -1};
      if (!check(analyze(machine.one(), *block, {&s}, encoding, &times).good(), what)) continue;
      check_sequence(machine, weights, s, encoding, what);
      check(times.normalize >= 0 && times.project >= 0 && times.attention >= 0 && times.saliency >= 0 && times.read_out >= 0, what + " timings");
    }
  }
}

// Weights of any magnitude: heads that differ by powers of ten, and outputs far outside of binary16.
DESAP_CASE(block_weights_of_any_magnitude) {
  RandomBlock weights({96, 3, Norm::rms, true, 0});
  for (int64_t i = 0; i < 96; i++) {
    const float factor = i < 32 ? 1e6f : i < 64 ? 1e-7f : 3e3f;
    for (int64_t j = 0; j < 96; j++) weights.v[static_cast<size_t>(i * 96 + j)] *= factor;
    weights.v_bias[static_cast<size_t>(i)] *= factor;
  }
  const std::shared_ptr<Block> block = new_block(machine.one(), weights);
  Sequence s(weights, 33, true, 8, 4);
  if (block && check(analyze(machine.one(), *block, {&s}, Encoding::qq).good(), "analyze")) check_sequence(machine, weights, s, Encoding::qq, "v of 1e6 and 1e-7");
}

// Sequences of unequal size, half and float, with tables and without: alone and together the same bits, and of several at fault the
// first is told.
DESAP_CASE(block_mixed_batch) {
  for (int64_t inner : {0, 40}) {
    const RandomBlock weights({64, 2, Norm::layer, true, inner});
    const std::shared_ptr<Block> block = new_block(machine.one(), weights);
    if (!block) return;
    const auto sequences = [&] {
      std::vector<std::unique_ptr<Sequence>> list;
      for (const auto& [rows, rotates, gain] : {std::tuple{20, false, 1.0f}, {33, false, 1.0f}, {7, true, 1.0f}, {40, true, 1.0f}, {12, true, 2.0f}, {1, false, 1.0f}})
        list.push_back(std::make_unique<Sequence>(weights, rows, rotates, std::max(1, rows / 4), static_cast<uint64_t>(rows), gain));
      return list;
    };
    auto alone = sequences(), together = sequences();
    std::vector<Sequence*> all;
    for (size_t i = 0; i < alone.size(); i++) {
      check(analyze(machine.one(), *block, {alone[i].get()}, Encoding::qk).good(), "alone");
      all.push_back(together[i].get());
    }
    std::vector<BlockTimings> times(all.size());
    check(analyze(machine.one(), *block, all, Encoding::qk, times.data()).good(), "together");
    for (size_t i = 0; i < alone.size(); i++) check(alone[i]->all() == together[i]->all(), "sequence " + std::to_string(i) + ": the same bits");

    std::vector<uint16_t> half(together[1]->hidden.size());
    check(convert_to_half(machine.one(), together[1]->hidden.data(), static_cast<int64_t>(half.size()), half.data()).good(), "half");
    check(convert_half(machine.one(), half.data(), static_cast<int64_t>(half.size()), alone[1]->hidden.data()).good(), "float");
    check(analyze(machine.one(), *block, {alone[1].get()}, Encoding::qq).good(), "float");
    BlockStates states = together[1]->states();
    states.hidden = {half.data(), true, together[1]->rows, nullptr};
    const BlockOutput output = together[1]->output();
    check(block->analyze(machine.one(), &states, 1, Encoding::qq, &output, nullptr).good() && together[1]->all() == alone[1]->all(), "half is its float values");

    const auto told = [&](const char* what, int64_t where, int64_t image) {
      const Status status = analyze(machine.one(), *block, all, Encoding::qq);
      check(is(status, Code::not_finite, what, where) && status.image == image, std::string(what) + " of " + std::to_string(image));
    };
    together[4]->rotary->sin[5 * 32 + 1] = NAN;
    told("sin", 5, 4);
    together[2]->rotary->cos[6 * 32] = INFINITY;
    told("cos", 6, 2);
    together[1]->hidden[9 * 64 + 3] = NAN, together[1]->hidden[11 * 64] = NAN;
    told("hidden", 9, 1);
    together[0]->hidden[19 * 64] = -INFINITY;
    told("hidden", 19, 0);
    const Status status = analyze(machine.one(), *block, {together[1].get()}, Encoding::qq);
    check(is(status, Code::not_finite, "hidden", 9) && status.image == -1, "alone nobody asks which");
  }
}

// What is not wanted is not computed, and changes nothing of the rest.
DESAP_CASE(block_parts) {
  const RandomBlock weights({64, 2, Norm::rms, true, 40});
  const std::shared_ptr<Block> block = new_block(machine.one(), weights);
  if (!block) return;
  Sequence whole(weights, 20, true, 5, 1);
  check(analyze(machine.one(), *block, {&whole}, Encoding::vv).good(), "whole");
  for (const bool attention : {false, true}) {
    for (const bool saliency : {false, true}) {
      for (const bool read_out : {false, true}) {
        Sequence part(weights, 20, true, 5, 1);
        const BlockStates states = part.states();
        BlockOutput output = part.output();
        if (!attention) output.attention = nullptr;
        if (!saliency) output.saliency = output.unit_saliency = nullptr;
        if (!read_out) output.embeddings = output.global = output.probe_saliency = nullptr;
        check(block->analyze(machine.one(), &states, 1, Encoding::vv, &output, nullptr).good(), "part");
        const auto right = [](const Floats& x, const Floats& y, bool wanted) { return wanted ? x == y : std::isnan(x.front()); };
        check(right(part.attention, whole.attention, attention) && right(part.saliency, whole.saliency, saliency) && right(part.unit_saliency, whole.unit_saliency, saliency) &&
              right(part.embeddings, whole.embeddings, read_out) && right(part.global, whole.global, read_out) && right(part.probe_saliency, whole.probe_saliency, read_out), "equal");
      }
    }
  }
  Sequence single(weights, 20, true, 20, 1);
  BlockStates states = single.states();
  states.unit = nullptr;
  const BlockOutput output = single.output();
  check(block->analyze(machine.one(), &states, 1, Encoding::vv, &output, nullptr).good() && single.unit_saliency == whole.saliency, "without units each patch is one");
}

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
  check(arrays <= 10, std::to_string(arrays) + " arrays [N, D]: hidden states, output, four more, tables and scores");
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
