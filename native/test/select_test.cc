// select against top_k in two stages.
#include "kernel_test.h"

namespace desap::test {
namespace {

DESAP_CASE(select_in_two_stages) {
  if (machine.tested_already()) return;
  for (int64_t size : {1, 2, 17, 144, 576}) {
    for (int64_t keep : {int64_t{0}, int64_t{1}, size / 3, size}) {
      for (int64_t task_keep : {int64_t{0}, keep / 2, keep}) {
        Random random(static_cast<uint64_t>(size + keep * 7 + task_keep));
        Floats task, saliency;
        for (Floats* map : {&task, &saliency}) {
          for (int64_t i = 0; i < size; i++) map->push_back(static_cast<float>(random.below(7)) * 0.5f - 1);
        }
        std::vector<uint8_t> taken(static_cast<size_t>(size)), source(static_cast<size_t>(keep), 7), expected_source;
        Ints expected = reference::top_k(task, nullptr, task_keep), indices(static_cast<size_t>(keep), -1);
        for (int32_t i : expected) taken[static_cast<size_t>(i)] = 1;
        for (int32_t i : reference::top_k(saliency, taken.data(), keep - task_keep)) expected.push_back(i);
        std::sort(expected.begin(), expected.end());
        for (int32_t i : expected) expected_source.push_back(taken[static_cast<size_t>(i)] ? 0 : 1);
        const float* const by_task = task_keep > 0 ? task.data() : nullptr;
        const float* const by_saliency = task_keep < keep ? saliency.data() : nullptr;
        for (bool both : {true, false}) {  // a map from which nothing is taken may be missing
          if (!both && !by_task && !by_saliency) continue;
          check(select(machine.one(), both ? task.data() : by_task, both ? saliency.data() : by_saliency, size, keep, task_keep, indices.data(), source.data()).good(), "status");
          check(indices == expected && source == expected_source, shape({size, keep, task_keep}));
        }
      }
    }
  }
}

DESAP_CASE(select_not_a_number) {
  const Floats good = {1, 2, 3, 4}, bad = {1, NAN, 3, 4}, taken = {1, 2, 3, NAN};
  int32_t indices[2];
  uint8_t source[2];
  check(is(select(machine.one(), bad.data(), good.data(), 4, 2, 1, indices, source), Code::not_finite, "task", 1), "task");
  check(is(select(machine.one(), good.data(), bad.data(), 4, 2, 1, indices, source), Code::not_finite, "saliency", 1), "saliency");
  check(select(machine.one(), good.data(), taken.data(), 4, 2, 1, indices, source).good() && indices[0] == 2 && indices[1] == 3, "of an entry that is taken");
}

}  // namespace
}  // namespace desap::test
