// select.cu against a sort. Unequal batches give each image what it has alone.
#include "selection.h"

namespace desap::test {
namespace {

DESAP_CUDA_CASE(select_values) {
  for (int size : {1, 2, 17, 33, 65, 97, 145, 257, 1024, 2049, 5000, 65536}) {
    for (bool ties : {false, true}) {
      const uint64_t seed = static_cast<uint64_t>(size);
      const Floats task = scores(size, ties, seed), saliency = scores(size, ties, seed + 7);
      for (int keep : {1, size / 9, size / 2, size}) {
        for (int task_keep : {0, keep / 2, keep}) {
          if (keep < 1 || (size > 5000 && task_keep != keep / 2)) continue;
          const SelectResult actual = run_select(queue, Batch({{size, 1, keep, task_keep}}), task, saliency);
          const SelectResult expected = expected_selection(task, saliency, keep, task_keep);
          const std::string what = shape({size, keep, task_keep}) + (ties ? " with ties" : "");
          check(actual.indices == expected.indices, what + " indices");
          check(actual.source == expected.source, what + " source");
          check(actual.task_fault == INT_MAX && actual.saliency_fault == INT_MAX, what + " no fault");
        }
      }
    }
  }
}

DESAP_CUDA_CASE(select_not_a_number) {
  for (int size : {3, 300, 3000}) {
    for (int task_keep : {0, 1, 2}) {
      const Batch batch({{size, 1, 2, task_keep}, {size, 1, 2, task_keep}});
      Floats task(static_cast<size_t>(2 * size), 1.0f), saliency = task;
      task[static_cast<size_t>(size)] = 2;  // chosen where one is
      saliency[static_cast<size_t>(size)] = NAN;
      saliency[static_cast<size_t>(2 * size - 1)] = NAN;
      const SelectResult rest = run_select(queue, batch, task, saliency);
      check(rest.task_fault == INT_MAX, "task scores are good");
      check(rest.saliency_fault == (task_keep == 0 ? size : 2 * size - 1), "the first NaN that takes part");
      for (int n : {1, size + 1, 2 * size - 1}) task[static_cast<size_t>(n)] = -NAN;
      const SelectResult actual = run_select(queue, batch, task, saliency);
      check(actual.task_fault == 1, "the first NaN of the task scores");
      bool within = true;
      for (int i : actual.indices) within = within && i >= 0 && i < size;
      check(within, "indices stay within the image");
    }
  }
}

// The host's call, which leaves out what is not needed.
DESAP_CASE(select_alone) {
  if (machine.tested_already()) return;
  for (int size : {1, 2, 97, 576}) {
    const Floats task = scores(size, true, 31), saliency = scores(size, false, 32);
    for (int keep : {1, size / 2, size}) {
      for (int task_keep : {0, keep / 2, keep}) {
        if (keep < 1) continue;
        const std::string what = shape({size, keep, task_keep});
        const SelectResult expected = expected_selection(task, saliency, keep, task_keep);
        const auto selects = [&](const float* first, const float* second) {
          Ints indices(expected.indices.size(), -1);
          std::vector<uint8_t> source(indices.size(), 7);
          check(select(machine.one(), first, second, size, keep, task_keep, indices.data(), source.data()).good(), what + " status");
          check(indices == expected.indices && source == expected.source, what);
        };
        selects(task.data(), saliency.data());
        if (task_keep == 0) selects(nullptr, saliency.data());
        if (task_keep == keep) selects(task.data(), nullptr);
      }
    }
  }
  const Floats bad = {1, 3, NAN, 2};
  const Floats good = {4, 3, 2, 1};
  int32_t indices[2];
  uint8_t source[2];
  const auto fails = [&](const Floats& task, const Floats& saliency) {
    return select(machine.one(), task.data(), saliency.data(), 4, 2, 1, indices, source);
  };
  check(is(fails(bad, good), Code::not_finite, "task", 2), "a task score that is not a number");
  check(is(fails(good, bad), Code::not_finite, "saliency", 2), "a saliency that is not a number");
  check(fails({1, 2, 5, 4}, bad).good(), "unless it does not take part");
  const Floats many(65537, 1.0f);
  check(is(select(machine.one(), many.data(), many.data(), 65537, 1, 1, indices, source), Code::unsupported, "scores", -1), "65537 scores");
}

DESAP_CUDA_CASE(select_in_a_batch) {
  const Batch batch({{257, 1, 30, 15}, {1, 1, 1, 1}, {2049, 1, 100, 0}, {33, 1, 33, 10}, {576, 1, 64, 64}});
  const Floats task = scores(batch.extent.patches, true, 8), saliency = scores(batch.extent.patches, false, 9);
  const SelectResult all = run_select(queue, batch, task, saliency);
  for (const cuda::Image& image : batch.images) {
    const SelectResult expected =
        expected_selection(part(task, image.patch, image.patches), part(saliency, image.patch, image.patches), image.keep, image.task_keep);
    check(part(all.indices, image.kept, image.keep) == expected.indices, "indices");
    check(part(all.source, image.kept, image.keep) == expected.source, "source");
  }
}

}  // namespace
}  // namespace desap::test
