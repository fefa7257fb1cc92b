// align.cu against float64, on shapes that no tile divides. Unequal batches give each image the bits that it has alone.
#include "../reference.h"
#include "batch.h"

namespace desap::test {
namespace {

using reference::Array;

// One image's inputs. `exact`: all products are exact in float32, alpha and beta powers of two (or 0), so that equal
// exponents stay equal however large they are.
struct Scene {
  Floats visual, text, end_of_text, global;
  Scene(int64_t patches, int64_t text_tokens, int64_t size, uint64_t seed, bool exact = false) {
    Random random(seed);
    const auto unit = [&](int64_t rows) {
      if (exact) {
        Floats x;
        for (int64_t i = 0; i < rows * size; i++) x.push_back(static_cast<float>(random.below(5) - 2) * 0.125f);
        return x;
      }
      const Array a = reference::unit_rows(Array(random.floats(rows * size), rows, size));
      return Floats(a.data.begin(), a.data.end());
    };
    visual = unit(patches), text = unit(text_tokens), end_of_text = unit(1), global = unit(1);
    if (exact) {
      end_of_text.assign(static_cast<size_t>(size), 0.0f);
      end_of_text[0] = 1;
      global = end_of_text;
    }
  }
};

struct AlignResult {
  Floats task, similarity, visual, text;
};

AlignResult run_align(cuda::Queue& queue, const Batch& batch, const std::vector<Scene>& scenes, int64_t size,
                      bool class_token, Alignment alignment, float lambda, bool with_matrices) {
  Floats visual, text, global;
  for (size_t n = 0; n < scenes.size(); n++) {
    if (class_token) visual.insert(visual.end(), static_cast<size_t>(size), NAN);  // the class token's row is not read
    visual.insert(visual.end(), scenes[n].visual.begin(), scenes[n].visual.end());
    text.insert(text.end(), scenes[n].text.begin(), scenes[n].text.end());
    text.insert(text.end(), scenes[n].end_of_text.begin(), scenes[n].end_of_text.end());
    global.insert(global.end(), scenes[n].global.begin(), scenes[n].global.end());
  }
  const int64_t matrix = with_matrices ? int64_t{batch.extent.max_patches} * batch.extent.max_text_tokens : 0;
  DeviceArray<cuda::Image> images(batch.images);
  DeviceArray<float> device_visual(visual), device_text(text), device_global(global), device_lambda(Floats{lambda});
  DeviceArray<float> scratch(cuda::align_scratch(batch.extent)), task(batch.extent.patches);
  DeviceArray<float> similarity(matrix), visual_alignment(matrix), text_alignment(matrix);
  // The visual rows by way of a slot, a row before them.
  DeviceArray<char*> slot(std::vector<char*>{reinterpret_cast<char*>(device_visual.get()) - 16});

  cuda::Align align{};
  align.images = images.get();
  align.extent = batch.extent;
  align.projection_dim = static_cast<int>(size);
  align.class_token = class_token;
  align.visual = {slot.get(), 16};
  align.global = device_global.get();
  align.text = device_text.get();
  align.alignment = alignment;
  align.lambda = device_lambda.get();
  align.scratch = scratch.get();
  align.task = task.get();
  if (with_matrices) {
    align.matrices.similarity = similarity.get();
    if (alignment != Alignment::mean) {
      align.matrices.visual_alignment = visual_alignment.get();
      align.matrices.text_alignment = text_alignment.get();
    }
  }
  cuda::align(queue, align);
  finish(queue);
  scratch.read();  // its guards
  return {task.read(), similarity.read(), visual_alignment.read(), text_alignment.read()};
}

void check_align(cuda::Queue& queue, int patches, int text_tokens, int64_t size, bool exact, Alignment alignment,
                 float lambda) {
  const Batch batch({{patches, text_tokens}});
  const Scene scene(patches, text_tokens, size, static_cast<uint64_t>(patches * 31 + text_tokens), exact);
  const reference::Aligned expected =
      reference::align({scene.visual, patches, size}, {scene.text, text_tokens, size}, {scene.end_of_text, 1, size},
                       {scene.global, 1, size}, alignment, lambda);
  const std::string what = shape({patches, text_tokens, size}) + " alignment " + std::to_string(static_cast<int>(alignment)) +
                           " lambda " + std::to_string(lambda) + (exact ? " exact" : "");
  const AlignResult alone = run_align(queue, batch, {scene}, size, true, alignment, lambda, false);
  const AlignResult all = run_align(queue, batch, {scene}, size, true, alignment, lambda, true);
  // The exponents' own rounding grows with them.
  const double tolerance = exact ? 2e-5 : std::max(5e-6, std::fabs(static_cast<double>(lambda)) * 4e-7);
  check(same_bits(alone.task, all.task), what + ": the matrices do not change the scores");
  check_close(all.task, expected.task, tolerance * expected.cancellation, what + " task");
  check_close(all.similarity, expected.similarity.data, 5e-6, what + " similarity");
  if (alignment == Alignment::mean) return;
  check_close(all.visual, expected.visual.data, tolerance, what + " M_V");
  check_close(all.text, expected.text.data, tolerance, what + " M_T");
}

DESAP_CUDA_CASE(align_values) {
  // 1100 patches: more groups of 16 than a block joins at once.
  const int shapes[][3] = {{1, 3, 16},   {2, 2, 20},   {17, 7, 33},  {33, 30, 96},  {65, 77, 65},
                           {97, 2, 130}, {145, 30, 256}, {257, 200, 40}, {300, 31, 1}, {31, 15, 300}, {1100, 5, 24}};
  for (const auto& sizes : shapes) {
    for (Alignment alignment : {Alignment::fcma, Alignment::fcma_clamped, Alignment::mean}) {
      for (float lambda : {0.1f, 0.0f, 50.0f, -3.0f}) {
        if (alignment == Alignment::mean && lambda != 0.1f) continue;
        check_align(queue, sizes[0], sizes[1], sizes[2], false, alignment, lambda);
      }
    }
  }
}

// Exponents up to 1e6 and beyond: the softmaxes share their weight among the largest only. Products are exact here.
DESAP_CUDA_CASE(align_large_lambda) {
  const int shapes[][3] = {{1, 1, 8}, {17, 7, 33}, {145, 30, 24}, {65, 77, 16}};
  for (const auto& sizes : shapes) {
    for (Alignment alignment : {Alignment::fcma, Alignment::fcma_clamped}) {
      for (float lambda : {0.1f, 1e6f, -1e6f, 1e9f}) {
        check_align(queue, sizes[0], sizes[1], sizes[2], true, alignment, lambda);
      }
    }
  }
}

DESAP_CUDA_CASE(align_in_a_batch) {
  const int64_t size = 40;
  for (bool class_token : {true, false}) {
    // Enough patches for the large tile; each image alone takes the small one.
    std::vector<Batch::Sizes> sizes;
    for (int patches : {257, 1, 33, 17, 600, 145, 2, 577, 97}) sizes.push_back({patches, 1 + patches % 78});
    const Batch batch(sizes, class_token);
    std::vector<Scene> scenes;
    for (size_t n = 0; n < sizes.size(); n++) scenes.emplace_back(sizes[n].patches, sizes[n].text_tokens, size, 50 + n);
    for (Alignment alignment : {Alignment::fcma, Alignment::mean}) {
      const Floats task = run_align(queue, batch, scenes, size, class_token, alignment, 0.1f, false).task;
      bool equal = true;
      for (size_t n = 0; n < sizes.size(); n++) {
        const Batch single({sizes[n]}, class_token);
        const Floats alone = run_align(queue, single, {scenes[n]}, size, class_token, alignment, 0.1f, false).task;
        equal = equal && same_bits(part(task, batch.images[n].patch, sizes[n].patches), alone);
      }
      check(equal, "bit-equal to each image alone");
    }
  }
}

}  // namespace
}  // namespace desap::test
