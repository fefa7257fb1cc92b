// top_k against a stable sort.
#include "kernel_test.h"

namespace desap::test {
namespace {

DESAP_CASE(top_k_selects) {
  if (machine.tested_already()) return;
  for (int64_t size : {1, 2, 17, 144, 576}) {
    for (int64_t k : {int64_t{0}, int64_t{1}, size / 3, size / 2, size}) {
      for (bool ties : {false, true}) {
        Random random(static_cast<uint64_t>(size + k));
        Floats scores;
        for (int64_t i = 0; i < size; i++) scores.push_back(ties ? static_cast<float>(random.below(5) - 2) * 0.5f : random.normal());
        for (float& s : scores) s = s == 0 && random.below(2) ? -0.0f : s;
        if (size > 100) scores[50] = infinity, scores[60] = -infinity, scores[70] = infinity;
        std::vector<uint8_t> excluded(static_cast<size_t>(size));
        Ints indices(static_cast<size_t>(k));
        check(top_k(machine.one(), scores.data(), nullptr, size, k, indices.data()).good(), "status");
        check(indices == reference::top_k(scores, nullptr, k), shape({size, k}) + (ties ? " with ties" : ""));
        for (int32_t i : indices) excluded[static_cast<size_t>(i)] = 1;
        const int64_t rest = std::min(k, size - k);
        indices.assign(static_cast<size_t>(rest), -1);
        check(top_k(machine.one(), scores.data(), excluded.data(), size, rest, indices.data()).good(), "status");
        check(indices == reference::top_k(scores, excluded.data(), rest), shape({size, rest}) + " of the rest");
      }
    }
  }
}

DESAP_CASE(top_k_not_a_number) {
  Floats scores = {1, 2, NAN, 3};
  const uint8_t excluded[] = {0, 0, 1, 0};
  int32_t indices[2] = {-1, -1};
  check(is(top_k(machine.one(), scores.data(), nullptr, 4, 1, indices), Code::not_finite, "scores", 2), "NaN that takes part");
  check(top_k(machine.one(), scores.data(), excluded, 4, 2, indices).good() && indices[0] == 1 && indices[1] == 3, "excluded NaN");
}

}  // namespace
}  // namespace desap::test
