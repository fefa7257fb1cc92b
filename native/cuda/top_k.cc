// The k largest of scores that may be excluded: the selection (select.cu) with nothing left for the saliency.
#include "kernel_run.h"

namespace desap {

using cuda::KernelRun;
using cuda::OneImage;
using cuda::with_run;

Status top_k(Context& context, const float* scores, const uint8_t* excluded, int64_t size, int64_t k, int32_t* indices) {
  if (size > cuda::most_scores) return {Code::unsupported, "scores"};
  return with_run(context, "top_k", [&](KernelRun& run) -> Status {
    const OneImage image(run, size, false, 0, k, k);
    cuda::Select select{};
    select.images = image.record;
    select.extent = image.extent;
    select.task = run.upload(scores, size);
    if (excluded) select.excluded = run.upload(excluded, size);
    select.indices = run.array<int>(k);
    select.source = run.array<uint8_t>(k);
    select.task_fault = run.fault();
    select.saliency_fault = run.fault();
    cuda::select(run.queue(), select);
    DESAP_TRY(run.check(select.task_fault, "scores"));
    run.download(select.indices, k, indices);
    return run.wait();
  });
}

}  // namespace desap
