// The block head against float64 in every form, several sequences in one call, and what is not wanted.
#include <algorithm>
#include <tuple>

#include "random_sequence.h"

namespace desap::test {
namespace {

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
      {{80, 5, Norm::layer, true, 0}, 7, 3, true, 1},     {{200, 5, Norm::rms, true, 0}, 7, 2, true, 1},    {{360, 5, Norm::layer, true, 40}, 65, 17, false, 1},
      {{72, 1, Norm::layer, true, 0}, 577, 145, false, 1}, {{40, 1, Norm::rms, true, 0}, 577, 577, true, 1},
  };
  for (const Form& form : forms) {
    if (form.gain > 1 && machine.precision != Precision::fp32) continue;  // operands of 16 bits resolve no such scores
    if (!machine.affords(static_cast<double>(form.rows * form.rows * form.block.width))) continue;
    if (machine.small() && form.rows * form.block.width > 10000) continue;
    const RandomBlock weights(form.block);
    const std::shared_ptr<Block> block = new_block(machine.one(), weights);
    if (!block) continue;
    for (Encoding encoding : encodings) {
      const std::string what = shape({form.rows, form.block.width, form.block.heads}) + ", encoding " + std::to_string(static_cast<int>(encoding));
      Sequence s(weights, form.rows, form.rotates, form.units, static_cast<uint64_t>(form.rows), form.gain);
      BlockTimings times{-1, -1, -1, -1, -1};
      machine.same<float>(what, [&](Context& context) {
        check(analyze(context, *block, {&s}, encoding, &times).good(), "status");
        return s.all();
      });
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
  for (Encoding encoding : {Encoding::qk, Encoding::kk, Encoding::qq, Encoding::vv}) {
    check(analyze(machine.one(), *block, {&whole}, encoding).good(), "whole");
    for (int wanted = 0; wanted < 16; wanted++) {
      const bool attention = wanted & 1, own = wanted & 2, saliency = wanted & 4, read_out = wanted & 8;
      Sequence part(weights, 20, true, 5, 1);
      const BlockStates states = part.states();
      BlockOutput output = part.output();
      if (!attention) output.attention = nullptr;
      if (!own) output.self_attention = nullptr;
      if (!saliency) output.saliency = output.unit_saliency = nullptr;
      if (!read_out) output.embeddings = output.global = output.probe_saliency = nullptr;
      check(block->analyze(machine.one(), &states, 1, encoding, &output, nullptr).good(), "part");
      const auto right = [](const Floats& x, const Floats& y, bool is) { return is ? x == y : std::isnan(x.front()); };
      check(right(part.attention, whole.attention, attention) && right(part.self_attention, whole.self_attention, own) && right(part.saliency, whole.saliency, saliency) &&
            right(part.unit_saliency, whole.unit_saliency, saliency) && right(part.embeddings, whole.embeddings, read_out) && right(part.global, whole.global, read_out) &&
            right(part.probe_saliency, whole.probe_saliency, read_out), "encoding " + std::to_string(static_cast<int>(encoding)) + ", parts " + std::to_string(wanted));
    }
  }
  Sequence single(weights, 20, true, 20, 1);
  BlockStates states = single.states();
  states.unit = nullptr;
  const BlockOutput output = single.output();
  check(block->analyze(machine.one(), &states, 1, Encoding::vv, &output, nullptr).good() && single.unit_saliency == whole.saliency, "without units each patch is one");
}

}  // namespace
}  // namespace desap::test
