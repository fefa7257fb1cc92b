// Runs of select.cu, and what a sort says that they give.
#pragma once

#include <climits>

#include "../reference.h"
#include "batch.h"

namespace desap::test {

struct SelectResult {
  Ints indices;
  std::vector<uint8_t> source;
  int task_fault, saliency_fault;
};

// saliency, excluded: empty where there is none.
inline SelectResult run_select(cuda::Queue& queue, const Batch& batch, const Floats& task, const Floats& saliency,
                               const std::vector<uint8_t>& excluded = {}) {
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

inline SelectResult expected_selection(const Floats& task, const Floats& saliency, int keep, int task_keep,
                                       std::vector<uint8_t> excluded = {}) {
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

// With ties, or all of them different; signed zeros, infinities and the ends of float32 where there is room.
inline Floats scores(int64_t size, bool ties, uint64_t seed) {
  Random random(seed);
  Floats x;
  for (int64_t i = 0; i < size; i++) {
    x.push_back(ties ? static_cast<float>(random.below(5) - 2) * 0.5f : random.normal() * 1e-7f);
  }
  for (float& v : x) v = v == 0 && random.below(2) ? -0.0f : v;
  if (size > 100) x[50] = INFINITY, x[60] = -INFINITY, x[70] = INFINITY;
  if (size > 200) x[101] = 1e-45f, x[102] = -1e-45f, x[103] = 3e38f, x[104] = -3e38f;
  return x;
}

}  // namespace desap::test
