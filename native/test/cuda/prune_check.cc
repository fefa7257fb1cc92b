// Alignment, selection and merging on the device against float64, on shapes that no tile divides. Unequal batches give
// each image the bits that it has alone.
#include <algorithm>
#include <climits>
#include <numeric>

#include "../reference.h"
#include "cuda_harness.h"

namespace desap::test {
namespace {

using cuda::Extent;
using cuda::Image;
using reference::Array;

const float infinity = std::numeric_limits<float>::infinity();

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

template <class T>
std::vector<T> part(const std::vector<T>& x, int64_t begin, int64_t size) {
  return std::vector<T>(x.begin() + begin, x.begin() + begin + size);
}

void finish(cuda::Queue& queue) {
  queue.note(cudaStreamSynchronize(queue.stream));
  check(!queue.failed(), cudaGetErrorString(queue.error));
}

// Images one after the other. Each has its query in the row after its words.
struct Batch {
  std::vector<Image> images;
  Extent extent{};
  int words = 0;  // rows of the text, queries included

  struct Sizes {
    int patches, words = 1, keep = 1, task_keep = 0;
  };
  explicit Batch(const std::vector<Sizes>& list, bool class_token = true) {
    for (const Sizes& sizes : list) {
      Image image{};
      image.row = static_cast<int>(extent.rows);
      image.rows = sizes.patches + (class_token ? 1 : 0);
      image.patch = static_cast<int>(extent.patches);
      image.patches = sizes.patches;
      image.word = words;
      image.words = sizes.words;
      image.query = words + sizes.words;
      image.keep = sizes.keep;
      image.task_keep = sizes.task_keep;
      image.kept = static_cast<int>(extent.kept);
      images.push_back(image);
      words += sizes.words + 1;
      extent.images++;
      extent.rows += image.rows;
      extent.patches += sizes.patches;
      extent.kept += sizes.keep;
      extent.max_rows = std::max(extent.max_rows, image.rows);
      extent.max_patches = std::max(extent.max_patches, sizes.patches);
      extent.max_words = std::max(extent.max_words, sizes.words);
      extent.max_keep = std::max(extent.max_keep, sizes.keep);
    }
  }
};

// ------------------------------------------------------------------------------------------------------------ align

// One image's inputs. `exact`: all products are exact in float32, alpha and beta powers of two (or 0), so that equal
// exponents stay equal however large they are.
struct Scene {
  Floats visual, text, query, global;
  Scene(int64_t patches, int64_t words, int64_t size, uint64_t seed, bool exact = false) {
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
    visual = unit(patches), text = unit(words), query = unit(1), global = unit(1);
    if (exact) {
      query.assign(static_cast<size_t>(size), 0.0f);
      query[0] = 1;
      global = query;
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
    text.insert(text.end(), scenes[n].query.begin(), scenes[n].query.end());
    global.insert(global.end(), scenes[n].global.begin(), scenes[n].global.end());
  }
  const int64_t matrix = with_matrices ? int64_t{batch.extent.max_patches} * batch.extent.max_words : 0;
  DeviceArray<Image> images(batch.images);
  DeviceArray<float> device_visual(visual), device_text(text), device_global(global), device_lambda(Floats{lambda});
  DeviceArray<float> scratch(cuda::align_scratch(batch.extent)), task(batch.extent.patches);
  DeviceArray<float> similarity(matrix), visual_alignment(matrix), text_alignment(matrix);
  // The visual rows by way of a slot, a row before them.
  DeviceArray<char*> slot(std::vector<char*>{reinterpret_cast<char*>(device_visual.get()) - 16});

  cuda::Align align{};
  align.images = images.get();
  align.extent = batch.extent;
  align.embedding = static_cast<int>(size);
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

void check_align(cuda::Queue& queue, int patches, int words, int64_t size, bool exact, Alignment alignment,
                 float lambda) {
  const Batch batch({{patches, words}});
  const Scene scene(patches, words, size, static_cast<uint64_t>(patches * 31 + words), exact);
  const reference::Aligned expected =
      reference::align({scene.visual, patches, size}, {scene.text, words, size}, {scene.query, 1, size},
                       {scene.global, 1, size}, alignment, lambda);
  const std::string what = shape({patches, words, size}) + " alignment " + std::to_string(static_cast<int>(alignment)) +
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

DESAP_CUDA_CASE(prune_align_shapes) {
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
DESAP_CUDA_CASE(prune_align_large_lambda) {
  const int shapes[][3] = {{1, 1, 8}, {17, 7, 33}, {145, 30, 24}, {65, 77, 16}};
  for (const auto& sizes : shapes) {
    for (Alignment alignment : {Alignment::fcma, Alignment::fcma_clamped}) {
      for (float lambda : {0.1f, 1e6f, -1e6f, 1e9f}) {
        check_align(queue, sizes[0], sizes[1], sizes[2], true, alignment, lambda);
      }
    }
  }
}

DESAP_CUDA_CASE(prune_align_is_the_same_in_a_batch) {
  const int64_t size = 40;
  for (bool class_token : {true, false}) {
    // Enough patches for the large tile; each image alone takes the small one.
    std::vector<Batch::Sizes> sizes;
    for (int patches : {257, 1, 33, 17, 600, 145, 2, 577, 97}) sizes.push_back({patches, 1 + patches % 78});
    const Batch batch(sizes, class_token);
    std::vector<Scene> scenes;
    for (size_t n = 0; n < sizes.size(); n++) scenes.emplace_back(sizes[n].patches, sizes[n].words, size, 50 + n);
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

// ----------------------------------------------------------------------------------------------------------- select

struct SelectResult {
  Ints indices;
  std::vector<uint8_t> source;
  int task_fault, saliency_fault;
};

SelectResult run_select(cuda::Queue& queue, const Batch& batch, const Floats& task, const Floats& saliency,
                        const std::vector<uint8_t>& excluded) {
  DeviceArray<Image> images(batch.images);
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

DESAP_CUDA_CASE(prune_select_shapes) {
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

DESAP_CUDA_CASE(prune_select_excluded) {
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

DESAP_CUDA_CASE(prune_select_not_a_number) {
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

DESAP_CUDA_CASE(prune_select_is_the_same_in_a_batch) {
  const Batch batch({{257, 1, 30, 15}, {1, 1, 1, 1}, {2049, 1, 100, 0}, {33, 1, 33, 10}, {576, 1, 64, 64}});
  const Floats task = scores(batch.extent.patches, true, 8), saliency = scores(batch.extent.patches, false, 9);
  const SelectResult all = run_select(queue, batch, task, saliency, {});
  for (const Image& image : batch.images) {
    const SelectResult expected =
        expected_selection(part(task, image.patch, image.patches), part(saliency, image.patch, image.patches), {},
                           image.keep, image.task_keep);
    check(part(all.indices, image.kept, image.keep) == expected.indices, "indices");
    check(part(all.source, image.kept, image.keep) == expected.source, "source");
  }
}

// ------------------------------------------------------------------------------------------------------------ merge

Floats run_inverse_norms(cuda::Queue& queue, const Floats& x, int64_t rows, int64_t cols, int* fault = nullptr) {
  DeviceArray<float> features(x), inverse(rows);
  DeviceArray<int> device_fault(Ints{INT_MAX});
  cuda::inverse_norms(queue, {features.get(), rows, cols, cols}, inverse.get(), device_fault.get());
  finish(queue);
  const int found = device_fault.read()[0];
  if (fault) *fault = found;
  return inverse.read();
}

struct MergeResult {
  Floats tokens;
  Ints assignment, counts;
};

MergeResult run_merge(cuda::Queue& queue, const Batch& batch, const Floats& x, int64_t cols, const Ints& kept,
                      bool merge = true) {
  DeviceArray<Image> images(batch.images);
  DeviceArray<float> features(x), inverse(run_inverse_norms(queue, x, batch.extent.patches, cols));
  DeviceArray<float> tokens(batch.extent.kept * cols);
  DeviceArray<int> indices(kept), assignment(batch.extent.patches), counts(batch.extent.kept);
  cuda::Merge m{};
  m.images = images.get();
  m.extent = batch.extent;
  m.width = static_cast<int>(cols);
  m.merge = merge;
  m.features = features.get();
  m.inverse_norm = inverse.get();
  m.indices = indices.get();
  m.tokens = tokens.get();
  m.assignment = assignment.get();
  m.counts = counts.get();
  DeviceArray<uint8_t> scratch(cuda::merge_scratch(batch.extent));
  m.scratch = scratch.get();
  cuda::merge(queue, m);
  finish(queue);
  scratch.read();  // its guards
  return {tokens.read(), assignment.read(), counts.read()};
}

// The kernel's own arithmetic: added up in ascending order in float32, then divided.
Floats means(const Floats& x, int64_t cols, const Ints& assignment, const Ints& counts) {
  Floats tokens(counts.size() * static_cast<size_t>(cols));
  std::vector<char> begun(counts.size());
  for (size_t i = 0; i < assignment.size(); i++) {
    const size_t c = static_cast<size_t>(assignment[i]);
    for (int64_t d = 0; d < cols; d++) {
      float& token = tokens[c * static_cast<size_t>(cols) + static_cast<size_t>(d)];
      const float value = x[i * static_cast<size_t>(cols) + static_cast<size_t>(d)];
      token = begun[c] ? token + value : value;
    }
    begun[c] = 1;
  }
  for (size_t n = 0; n < tokens.size(); n++) tokens[n] /= static_cast<float>(counts[n / static_cast<size_t>(cols)]);
  return tokens;
}

Ints some_of(int64_t rows, int64_t k, uint64_t seed) {
  Random random(seed);
  Ints kept(static_cast<size_t>(rows));
  std::iota(kept.begin(), kept.end(), 0);
  for (int32_t& i : kept) std::swap(i, kept[static_cast<size_t>(random.below(rows))]);
  kept.resize(static_cast<size_t>(k));
  std::sort(kept.begin(), kept.end());
  return kept;
}

void check_merge(const MergeResult& actual, const Floats& x, int64_t rows, int64_t cols, const Ints& kept,
                 const std::string& what) {
  const int64_t k = static_cast<int64_t>(kept.size());
  const Array similarities = reference::similarities(Array(x, rows, cols), kept);
  bool nearest = true;
  Ints members(static_cast<size_t>(k));
  for (int64_t i = 0; i < rows; i++) {
    const int32_t chosen = actual.assignment[static_cast<size_t>(i)];
    if (!check(chosen >= 0 && chosen < k, what + " assignment within the centres")) return;
    for (int64_t c = 0; c < k; c++) nearest = nearest && similarities.at(i, chosen) >= similarities.at(i, c) - 1e-6;
    members[static_cast<size_t>(chosen)]++;
  }
  check(nearest, what + " assignment");
  check(actual.counts == members, what + " counts");
  check(same_bits(actual.tokens, means(x, cols, actual.assignment, members)), what + " tokens");
}

DESAP_CUDA_CASE(prune_inverse_norms) {
  for (int64_t cols : {1, 5, 64, 300, 1024}) {
    const int64_t rows = 37;
    Floats x = Random(static_cast<uint64_t>(cols)).floats(rows * cols);
    for (int64_t d = 0; d < cols; d++) x[static_cast<size_t>(5 * cols + d)] = d % 2 ? -0.0f : 0.0f;
    for (int64_t d = 0; d < cols; d++) x[static_cast<size_t>(6 * cols + d)] *= 1e15f;
    Doubles expected;
    const Array a(x, rows, cols);
    for (int64_t i = 0; i < rows; i++) expected.push_back(i == 5 ? 0 : 1 / std::sqrt(reference::dot(a, i, a, i)));
    int fault = 0;
    const Floats actual = run_inverse_norms(queue, x, rows, cols, &fault);
    bool close = true;
    for (size_t i = 0; i < expected.size(); i++) {
      close = close && std::fabs(actual[i] - expected[i]) <= 1e-6 * expected[i];
    }
    check(close && fault == INT_MAX, "width " + std::to_string(cols));
    for (float bad : {NAN, infinity, -infinity, 2e19f}) {
      Floats y = x;
      y[static_cast<size_t>(20 * cols)] = bad;
      y[static_cast<size_t>(11 * cols + cols - 1)] = bad;
      check(run_inverse_norms(queue, y, rows, cols, &fault)[11] == 0 && fault == 11, "the first row at fault");
    }
  }
}

DESAP_CUDA_CASE(prune_merge_shapes) {
  for (int rows : {1, 2, 17, 33, 65, 97, 145, 257}) {
    for (int k : {1, 2, rows / 9, rows / 4, rows}) {
      if (k < 1 || k > rows) continue;
      for (int64_t cols : {40, 33, 300}) {
        if (cols == 300 && rows > 100) continue;
        const Floats x = Random(static_cast<uint64_t>(rows * 3 + k)).floats(rows * cols);
        const Ints kept = some_of(rows, k, static_cast<uint64_t>(rows));
        const Batch batch({{rows, 1, k}});
        const MergeResult actual = run_merge(queue, batch, x, cols, kept);
        check_merge(actual, x, rows, cols, kept, shape({rows, cols, k}));
      }
    }
  }
}

DESAP_CUDA_CASE(prune_merge_wide) {
  const int64_t rows = 50, cols = 1040;
  Floats x = Random(4).floats(rows * cols);
  for (int64_t i = 0; i < rows; i++) {  // lengths from 3e-11 to 3e13: only directions count
    const float scale = std::pow(10.0f, static_cast<float>(i % 5 - 2) * 6);
    for (int64_t d = 0; d < cols; d++) x[static_cast<size_t>(i * cols + d)] *= scale;
  }
  const Ints kept = some_of(rows, 9, 5);
  check_merge(run_merge(queue, Batch({{static_cast<int>(rows), 1, 9}}), x, cols, kept), x, rows, cols, kept, "wide");
}

// Copies of a few directions, lengths powers of two: a row joins the first centre that has its direction.
DESAP_CUDA_CASE(prune_merge_ties_go_to_the_first_centre) {
  const int64_t cols = 88, directions = 6;
  const Floats pool = Random(21).floats(directions * cols);
  for (int rows : {150, 260}) {
    for (int k : {2, 7, 40, 130}) {
      Random random(static_cast<uint64_t>(rows + k));
      Floats x;
      Ints direction;
      for (int i = 0; i < rows; i++) {
        const int64_t own = random.below(directions);
        direction.push_back(static_cast<int32_t>(own));
        for (int64_t d = 0; d < cols; d++) x.push_back(std::ldexp(pool[static_cast<size_t>(own * cols + d)], i % 5));
      }
      const Ints kept = some_of(rows, k, static_cast<uint64_t>(k));
      const MergeResult actual = run_merge(queue, Batch({{rows, 1, k}}), x, cols, kept);
      bool first = true;
      for (int i = 0; i < rows; i++) {
        int expected = -1;
        for (int c = k - 1; c >= 0; c--) {
          const int32_t centre = kept[static_cast<size_t>(c)];
          if (direction[static_cast<size_t>(centre)] == direction[static_cast<size_t>(i)]) expected = c;
        }
        for (int c = 0; c < k; c++) expected = kept[static_cast<size_t>(c)] == i ? c : expected;
        first = first && (expected < 0 || actual.assignment[static_cast<size_t>(i)] == expected);
      }
      check(first, shape({rows, k}));
    }
  }
}

DESAP_CUDA_CASE(prune_merge_zero_rows_and_negative_similarities) {
  const int64_t cols = 16;
  Floats x(5 * cols, 0.0f);
  for (int64_t d = 0; d < cols; d++) {
    x[static_cast<size_t>(0 * cols + d)] = 1;                    // centre
    x[static_cast<size_t>(1 * cols + d)] = d % 2 ? 1.0f : 0.9f;  // centre
    x[static_cast<size_t>(2 * cols + d)] = -1;                   // nearest of two opposites: the second
  }                                                              // 3, 4: zero rows, equally far from all
  const MergeResult actual = run_merge(queue, Batch({{5, 1, 2}}), x, cols, {0, 1});
  check(actual.assignment == Ints({0, 1, 1, 0, 0}) && actual.counts == Ints({3, 2}), "assignment");
  check(actual.tokens[0] == 1.0f / 3 && actual.tokens[static_cast<size_t>(cols) + 1] == 0, "means");
  // A zero centre is nearer than one at an obtuse angle, farther than one at an acute angle.
  const MergeResult zero = run_merge(queue, Batch({{5, 1, 2}}), x, cols, {0, 3});
  check(zero.assignment == Ints({0, 0, 1, 1, 0}), "a zero centre");
}

DESAP_CUDA_CASE(prune_kept_rows_stay_as_they_are) {
  const Floats x = {1.5f, -0.0f, 3e-39f, 2, 5, 7};
  for (bool merge : {true, false}) {
    const MergeResult actual = run_merge(queue, Batch({{2, 1, 2}}), x, 3, {0, 1}, merge);
    check(same_bits(actual.tokens, x), "bit for bit");
    check(actual.counts == Ints({1, 1}) && actual.assignment == Ints({0, 1}), "alone");
  }
  const int64_t rows = 700, cols = 270;
  const Floats y = Random(6).floats(rows * cols);
  for (int k : {1, 5, 700}) {
    const Ints kept = some_of(rows, k, 7);
    const MergeResult actual = run_merge(queue, Batch({{static_cast<int>(rows), 1, k}}), y, cols, kept, false);
    Ints assignment(static_cast<size_t>(rows), -1);
    Floats tokens;
    for (int c = 0; c < k; c++) {
      const int64_t i = kept[static_cast<size_t>(c)];
      assignment[static_cast<size_t>(i)] = c;
      tokens.insert(tokens.end(), y.begin() + i * cols, y.begin() + (i + 1) * cols);
    }
    check(same_bits(actual.tokens, tokens) && actual.assignment == assignment, "without merging, " + std::to_string(k));
    check(actual.counts == Ints(static_cast<size_t>(k), 1), "counts without merging");
  }
}

DESAP_CUDA_CASE(prune_merge_is_the_same_in_a_batch) {
  // Enough patches for the large tile; each image alone takes the small one.
  const std::vector<Batch::Sizes> sizes = {{2500, 1, 70}, {1, 1, 1},     {33, 1, 33},
                                           {2049, 1, 3},  {577, 1, 130}, {1025, 1, 64}};
  const Batch batch(sizes);
  for (int64_t cols : {33, 520}) {
    const Floats x = Random(12).floats(batch.extent.patches * cols);
    Ints kept;
    for (const Image& image : batch.images) {
      const Ints own = some_of(image.patches, image.keep, static_cast<uint64_t>(image.keep));
      kept.insert(kept.end(), own.begin(), own.end());
    }
    for (bool merge : {true, false}) {
      const MergeResult all = run_merge(queue, batch, x, cols, kept, merge);
      bool equal = true;
      for (size_t n = 0; n < sizes.size(); n++) {
        const Image& image = batch.images[n];
        const Floats rows = part(x, image.patch * cols, image.patches * cols);
        const Ints own = part(kept, image.kept, image.keep);
        const MergeResult alone = run_merge(queue, Batch({sizes[n]}), rows, cols, own, merge);
        equal = equal && same_bits(part(all.tokens, image.kept * cols, image.keep * cols), alone.tokens) &&
                part(all.assignment, image.patch, image.patches) == alone.assignment &&
                part(all.counts, image.kept, image.keep) == alone.counts;
        if (merge && image.patches == 577) check_merge(alone, rows, image.patches, cols, own, "577");
      }
      check(equal, "bit-equal to each image alone");
    }
  }
}

}  // namespace
}  // namespace desap::test
