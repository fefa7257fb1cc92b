// farthest_points.cu in a batch: each image has what it has alone, in ascending order, with its source.
#include "../greedy.h"
#include "operands.h"

namespace desap::test {
namespace {

struct Chosen {
  Ints indices;
  std::vector<uint8_t> source;
};

// `seeds`: where an image's stand, its task_keep first of its keep. by_sum: without seeds, the first by its sum of distances.
Chosen run_farthest(cuda::Queue& queue, const Batch& batch, const Floats& x, int width, const Ints& seeds, bool by_sum) {
  DeviceArray<cuda::Image> images(batch.images);
  DeviceArray<float> rows(x), norms(batch.extent.patches), closest(batch.extent.patches);
  DeviceArray<int> device_seeds(seeds), indices(batch.extent.kept);
  DeviceArray<uint8_t> source(batch.extent.kept);
  DeviceArray<unsigned> others(batch.extent.patches);
  DeviceArray<float> sums(batch.extent.images * width);
  const DeviceFault fault;
  cuda::FarthestPoints f{};
  f.images = images.get();
  f.extent = batch.extent;
  f.width = width;
  for (const cuda::Image& image : batch.images) f.steps = std::max(f.steps, image.keep - image.task_keep);
  DeviceArray<cuda::Pick> picks(batch.extent.images * f.steps);
  f.rows = static_cast<const float*>(rows.get());
  f.inverse_norm = static_cast<const float*>(norms.get());
  f.seeds = device_seeds.get();
  if (by_sum) f.sums = sums.get();
  else f.others = others.get();
  f.closest = closest.get();
  f.picks = picks.get();
  f.indices = indices.get();
  f.source = source.get();
  cuda::inverse_norms(queue, {rows.get(), batch.extent.patches, width, width}, norms.get(), fault.get());
  cuda::farthest_points(queue, f);
  finish(queue);
  return {indices.read(), source.read()};
}

DESAP_CUDA_CASE(farthest_points_in_a_batch) {
  for (int width : {16, 33}) {
    const Batch batch({{97, 1, 20, 10}, {1, 1, 1, 0}, {65, 1, 30, 0}, {33, 1, 33, 12}, {64, 1, 9, 9}, {130, 1, 40, 1}});
    const Floats x = Random(8).floats(batch.extent.patches * width);
    Ints seeds(static_cast<size_t>(batch.extent.kept));
    for (const cuda::Image& image : batch.images) {
      for (int s = 0; s < image.task_keep; s++) seeds[static_cast<size_t>(image.kept + s)] = image.patches - 1 - 2 * (image.task_keep - 1 - s);
    }
    for (const bool by_sum : {false, true}) {
      const Chosen all = run_farthest(queue, batch, x, width, seeds, by_sum);
      for (const cuda::Image& image : batch.images) {
        const Ints own = part(seeds, image.kept, image.task_keep);
        const Array rows{part(x, image.patch * width, image.patches * width), image.patches, width};
        Ints first = own;
        if (by_sum && first.empty()) first.push_back(reference::most_distant(rows));
        Ints expected = reference::farthest_points(rows, first, image.keep - static_cast<int>(first.size()));
        expected.insert(expected.end(), first.begin(), first.end());
        std::sort(expected.begin(), expected.end());
        std::vector<uint8_t> source;
        for (int32_t i : expected) source.push_back(std::find(own.begin(), own.end(), i) == own.end() ? 1 : 0);
        const std::string what = shape({width, image.patches, image.keep, image.task_keep}) + (by_sum ? " by sum" : "");
        check(part(all.indices, image.kept, image.keep) == expected, what + " indices");
        check(part(all.source, image.kept, image.keep) == source, what + " source");
      }
    }
  }
}

}  // namespace
}  // namespace desap::test
