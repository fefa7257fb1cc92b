// select.cu and top_k.cc against a sort. Unequal batches give each image what it has alone.
#include <climits>

#include "../reference.h"
#include "batch.h"

namespace desap::test {
namespace {

const float infinity = std::numeric_limits<float>::infinity();

struct SelectResult {
  Ints indices;
  std::vector<uint8_t> source;
  int task_fault, saliency_fault;
};

SelectResult run_select(cuda::Queue& queue, const Batch& batch, const Floats& task, const Floats& saliency,
                        const std::vector<uint8_t>& excluded) {
  DeviceArray<cuda::Image> images(batch.images);
  DeviceArray<float> device_task(task), device_saliency(saliency);
  DeviceArray<uint8_t> device_excluded(excluded);
  DeviceArray<uint8_t> source(batch.extent.kept);
  DeviceArray<int> indices(batch.extent.kept), task_fault(Ints{INT_MAX}), saliency_fault(Ints{INT_MAX});
  cuda::Select select{};
  select.images = images.get();
  select.extent = batch.extent;
  select.task = device_task.get();
  if (!saliency.empty()) select.saliency = device_saliency.get();
  select.excluded = excluded.empty() ? nullptr : device_excluded.get();
  select.indices = indices.get();
  select.source = source.get();
  select.task_fault = task_fault.get();
  select.saliency_fault = saliency_fault.get();
  cuda::select(queue, select);
  finish(queue);
  return {indices.read(), source.read(), task_fault.read()[0], saliency_fault.read()[0]};
}

SelectResult expected_selection(const Floats& task, const Floats& saliency, std::vector<uint8_t> excluded, int keep,
                                int task_keep) {
  excluded.resize(task.size());
  SelectResult result{{}, {}, INT_MAX, INT_MAX};
  const Ints by_task = reference::top_k(task, excluded.data(), task_keep);
  for (int32_t i : by_task) excluded[static_cast<size_t>(i)] = 1;
  result.indices = by_task;
  if (!saliency.empty()) {
    const Ints by_saliency = reference::top_k(saliency, excluded.data(), keep - task_keep);
    result.indices.insert(result.indices.end(), by_saliency.begin(), by_saliency.end());
  }
  std::sort(result.indices.begin(), result.indices.end());
  for (int32_t i : result.indices) {
    result.source.push_back(std::binary_search(by_task.begin(), by_task.end(), i) ? 0 : 1);
  }
  return result;
}

Floats scores(int64_t size, bool ties, uint64_t seed) {
  Random random(seed);
  Floats x;
  for (int64_t i = 0; i < size; i++) {
    x.push_back(ties ? static_cast<float>(random.below(5) - 2) * 0.5f : random.normal() * 1e-7f);
  }
  for (float& v : x) v = v == 0 && random.below(2) ? -0.0f : v;
  if (size > 100) x[50] = infinity, x[60] = -infinity, x[70] = infinity;
  if (size > 200) x[101] = 1e-45f, x[102] = -1e-45f, x[103] = 3e38f, x[104] = -3e38f;
  return x;
}

DESAP_CUDA_CASE(select_values) {
  for (int size : {1, 2, 17, 33, 65, 97, 145, 257, 1024, 2049, 5000, 65536}) {
    for (bool ties : {false, true}) {
      const uint64_t seed = static_cast<uint64_t>(size);
      const Floats task = scores(size, ties, seed), saliency = scores(size, ties, seed + 7);
      for (int keep : {1, size / 9, size / 2, size}) {
        for (int task_keep : {0, keep / 2, keep}) {
          if (keep < 1 || (size > 5000 && task_keep != keep / 2)) continue;
          const SelectResult actual = run_select(queue, Batch({{size, 1, keep, task_keep}}), task, saliency, {});
          const SelectResult expected = expected_selection(task, saliency, {}, keep, task_keep);
          const std::string what = shape({size, keep, task_keep}) + (ties ? " with ties" : "");
          check(actual.indices == expected.indices, what + " indices");
          check(actual.source == expected.source, what + " source");
          check(actual.task_fault == INT_MAX && actual.saliency_fault == INT_MAX, what + " no fault");
        }
      }
    }
  }
}

DESAP_CUDA_CASE(select_excluded) {
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
      check(actual.indices == expected_selection(comparable, {}, excluded, keep, keep).indices, shape({size, keep}));
      check(actual.task_fault == INT_MAX && actual.saliency_fault == INT_MAX, "an excluded NaN is no fault");
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
      const SelectResult rest = run_select(queue, batch, task, saliency, {});
      check(rest.task_fault == INT_MAX, "task scores are good");
      check(rest.saliency_fault == (task_keep == 0 ? size : 2 * size - 1), "the first NaN that takes part");
      for (int n : {1, size + 1, 2 * size - 1}) task[static_cast<size_t>(n)] = -NAN;
      const SelectResult actual = run_select(queue, batch, task, saliency, {});
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
        const SelectResult expected = expected_selection(task, saliency, {}, keep, task_keep);
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
  check(is(top_k(machine.one(), many.data(), nullptr, 65537, 1, indices), Code::unsupported, "scores", -1), "top_k, too");
}

DESAP_CUDA_CASE(select_in_a_batch) {
  const Batch batch({{257, 1, 30, 15}, {1, 1, 1, 1}, {2049, 1, 100, 0}, {33, 1, 33, 10}, {576, 1, 64, 64}});
  const Floats task = scores(batch.extent.patches, true, 8), saliency = scores(batch.extent.patches, false, 9);
  const SelectResult all = run_select(queue, batch, task, saliency, {});
  for (const cuda::Image& image : batch.images) {
    const SelectResult expected =
        expected_selection(part(task, image.patch, image.patches), part(saliency, image.patch, image.patches), {},
                           image.keep, image.task_keep);
    check(part(all.indices, image.kept, image.keep) == expected.indices, "indices");
    check(part(all.source, image.kept, image.keep) == expected.source, "source");
  }
}

}  // namespace
}  // namespace desap::test
