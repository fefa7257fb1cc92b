// A sequence for a block head, room for its results, and the check of them against float64.
#pragma once

#include "random_block.h"

namespace desap::test {

constexpr Encoding encodings[] = {Encoding::qq, Encoding::kk, Encoding::vv, Encoding::qk};

// A sequence and room for its results; those start as NaN.
struct Sequence {
  Sequence(const RandomBlock& block, int64_t rows_, bool rotates, int64_t units_, uint64_t seed, float gain = 1) : rows(rows_), units(units_) {
    const int64_t d = block.config.width;
    hidden = Random(seed).floats(rows * d);
    if (rotates) rotary = std::make_unique<RandomRotary>(rows, d / block.config.heads, seed, gain);
    Random random(seed + 1);
    for (int64_t i = 0; i < rows; i++) unit.push_back(static_cast<int32_t>(i < units ? units - 1 - i : random.below(units)));
    attention.assign(hidden.size(), NAN), self_attention = attention, saliency.assign(static_cast<size_t>(rows), NAN), unit_saliency.assign(static_cast<size_t>(units), NAN);
    if (block.config.mlp_width == 0) return;
    embeddings = attention, probe_saliency = saliency, global.assign(static_cast<size_t>(d), NAN);
  }
  Rotary tables() const { return rotary ? rotary->tables() : Rotary{}; }
  BlockStates states() const { return {{hidden.data(), false, rows, nullptr}, tables(), unit.data(), units}; }
  BlockOutput output() {
    const auto wanted = [](Floats& x) { return x.empty() ? nullptr : x.data(); };
    return {attention.data(), self_attention.data(), saliency.data(), unit_saliency.data(), wanted(embeddings), wanted(global), wanted(probe_saliency)};
  }
  Floats all() const { return concatenate({attention, self_attention, saliency, unit_saliency, embeddings, global, probe_saliency}); }

  int64_t rows, units;
  Floats hidden;
  std::unique_ptr<RandomRotary> rotary;
  Ints unit;
  Floats attention, self_attention, saliency, unit_saliency, embeddings, global, probe_saliency;
};

inline std::shared_ptr<Block> new_block(Context& context, const RandomBlock& weights) {
  std::shared_ptr<Block> block;
  check(Block::create(context, weights.config, weights.weights(), &block).good(), "create");
  return block;
}

// Of many sequences in one call, in order.
inline Status analyze(Context& context, const Block& block, const std::vector<Sequence*>& sequences, Encoding encoding, BlockTimings* timings = nullptr) {
  std::vector<BlockStates> states;
  std::vector<BlockOutput> outputs;
  for (Sequence* one : sequences) {
    states.push_back(one->states());
    outputs.push_back(one->output());
  }
  return block.analyze(context, states.data(), static_cast<int64_t>(states.size()), encoding, outputs.data(), timings);
}

inline double block_tolerance(const Machine& machine) { return machine.precision == Precision::fp32 ? 1e-5 : machine.tolerance(2e-5); }

inline void check_sequence(const Machine& machine, const RandomBlock& weights, const Sequence& s, Encoding encoding, const std::string& what) {
  const Block64 expected = block64(weights, s.hidden, s.tables(), s.unit, s.units, encoding);
  const double tolerance = block_tolerance(machine);
  check_close(s.attention, expected.attention.data, tolerance, what + " attention");
  check_close(s.self_attention, expected.self_attention.data, tolerance, what + " self attention");
  check_close(s.saliency, expected.saliency, tolerance, what + " saliency");
  check_close(s.unit_saliency, expected.unit_saliency, tolerance, what + " units");
  if (weights.config.mlp_width == 0) return;
  check_close(s.embeddings, expected.pooled.embeddings.data, tolerance, what + " embeddings");
  check_close(s.global, expected.pooled.global.data, tolerance, what + " global");
  check_close(s.probe_saliency, expected.pooled.saliency, tolerance, what + " probe");
}

}  // namespace desap::test
