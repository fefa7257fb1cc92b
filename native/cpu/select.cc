// The two-stage selection over top_k.
#include <cstring>

#include "dispatch.h"

namespace desap {
namespace {

Status ranked(Context& context, const char* name, const float* scores, const uint8_t* excluded, int64_t size, int64_t k, int32_t* indices) {
  if (!scores) return {};
  Status status = top_k(context, scores, excluded, size, k, indices);
  if (status.code == Code::not_finite) status.what = name;
  return status;
}

}  // namespace

Status select(Context& context, const float* task, const float* saliency, int64_t size, int64_t keep, int64_t task_keep, int32_t* indices,
              uint8_t* source) {
  Scratch scratch(context.arena);
  uint8_t* taken = scratch.bytes(size);
  int32_t* by_task = scratch.ints(task_keep);
  int32_t* by_saliency = scratch.ints(keep - task_keep);
  if (scratch.failed()) return out_of_memory("select");
  DESAP_TRY(ranked(context, "task", task, nullptr, size, task_keep, by_task));
  std::memset(taken, 0, static_cast<size_t>(size));
  for (int64_t i = 0; i < task_keep; i++) taken[by_task[i]] = 1;
  DESAP_TRY(ranked(context, "saliency", saliency, taken, size, keep - task_keep, by_saliency));
  for (int64_t i = 0, t = 0, s = 0; i < keep; i++) {
    const bool from_task = s == keep - task_keep || (t < task_keep && by_task[t] < by_saliency[s]);
    indices[i] = from_task ? by_task[t++] : by_saliency[s++];
    source[i] = from_task ? 0 : 1;
  }
  return {};
}

}  // namespace desap
