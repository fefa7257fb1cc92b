// top_k on the GPU, which is select.cu with nothing left for the saliency, against a sort.
#include "selection.h"

namespace desap::test {
namespace {

DESAP_CUDA_CASE(top_k_excluded) {
  for (int size : {2, 97, 1500}) {
    Random random(static_cast<uint64_t>(size));
    std::vector<uint8_t> excluded;
    for (int i = 0; i < size; i++) excluded.push_back(i > 0 && random.below(3) == 0 ? 1 : 0);
    const int rest = static_cast<int>(std::count(excluded.begin(), excluded.end(), 0));
    Floats task = scores(size, true, 3);
    for (size_t i = 0; i < task.size(); i++) task[i] = excluded[i] ? NAN : task[i];
    for (int keep : {1, rest / 2, rest}) {
      if (keep < 1) continue;
      const SelectResult actual = run_select(queue, Batch({{size, 1, keep, keep}}), task, {}, excluded);
      Floats comparable = task;
      for (float& v : comparable) v = std::isnan(v) ? 0 : v;
      check(actual.indices == expected_selection(comparable, {}, keep, keep, excluded).indices, shape({size, keep}));
      check(actual.task_fault == INT_MAX && actual.saliency_fault == INT_MAX, "an excluded NaN is no fault");
    }
  }
}

// The host's call, beyond the sizes of ../top_k_test.cc.
DESAP_CASE(top_k_sizes) {
  if (machine.tested_already()) return;
  for (int size : {2049, 65536}) {
    const Floats values = scores(size, true, 33);
    Ints indices(static_cast<size_t>(size / 2), -1);
    check(top_k(machine.one(), values.data(), nullptr, size, size / 2, indices.data()).good(), "status");
    check(indices == reference::top_k(values, nullptr, size / 2), std::to_string(size));
  }
  const Floats many(65537, 1.0f);
  int32_t index;
  check(is(top_k(machine.one(), many.data(), nullptr, 65537, 1, &index), Code::unsupported, "scores", -1), "65537 scores");
}

}  // namespace
}  // namespace desap::test
