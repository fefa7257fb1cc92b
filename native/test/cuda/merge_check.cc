// merge.cu against float64, on shapes that no tile divides. Unequal batches give each image the bits that it has alone.
#include <climits>
#include <numeric>

#include "../reference.h"
#include "batch.h"

namespace desap::test {
namespace {

using reference::Array;

const float infinity = std::numeric_limits<float>::infinity();

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
  int fault;
};

MergeResult run_merge(cuda::Queue& queue, const Batch& batch, const Floats& x, int64_t cols, const Ints& kept,
                      bool merge = true) {
  DeviceArray<cuda::Image> images(batch.images);
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
  DeviceArray<int> fault(Ints{INT_MAX});
  m.scratch = scratch.get();
  m.fault = fault.get();
  cuda::merge(queue, m);
  finish(queue);
  scratch.read();  // its guards
  return {tokens.read(), assignment.read(), counts.read(), fault.read()[0]};
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

DESAP_CUDA_CASE(inverse_norms) {
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

DESAP_CUDA_CASE(merge_values) {
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

DESAP_CUDA_CASE(merge_wide) {
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
DESAP_CUDA_CASE(merge_ties_go_to_the_first_centre) {
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

DESAP_CUDA_CASE(merge_zero_rows_and_negative_similarities) {
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

DESAP_CUDA_CASE(merge_kept_rows_stay_as_they_are) {
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
    check(actual.fault == INT_MAX, "finite without merging");
  }
}

DESAP_CUDA_CASE(merge_tells_of_kept_rows_that_are_not_finite) {
  const int64_t cols = 270;
  const Batch batch({{40, 1, 3}, {30, 1, 2}});
  const Ints kept = {2, 9, 39, 4, 20};
  Floats x = Random(8).floats(batch.extent.patches * cols);
  x[5] = x[static_cast<size_t>(40 * cols)] = NAN;  // dropped
  x[static_cast<size_t>(9 * cols)] = 1e25f;
  check(run_merge(queue, batch, x, cols, kept, false).fault == INT_MAX, "dropped rows and large ones");
  for (float bad : {NAN, infinity, -infinity}) {
    Floats y = x;
    y[static_cast<size_t>(60 * cols)] = y[static_cast<size_t>(44 * cols + cols - 1)] = bad;
    check(run_merge(queue, batch, y, cols, kept, false).fault == 44, "the first patch at fault");
  }
}

DESAP_CUDA_CASE(merge_in_a_batch) {
  // Enough patches for the large tile; each image alone takes the small one.
  const std::vector<Batch::Sizes> sizes = {{2500, 1, 70}, {1, 1, 1},     {33, 1, 33},
                                           {2049, 1, 3},  {577, 1, 130}, {1025, 1, 64}};
  const Batch batch(sizes);
  for (int64_t cols : {33, 520}) {
    const Floats x = Random(12).floats(batch.extent.patches * cols);
    Ints kept;
    for (const cuda::Image& image : batch.images) {
      const Ints own = some_of(image.patches, image.keep, static_cast<uint64_t>(image.keep));
      kept.insert(kept.end(), own.begin(), own.end());
    }
    for (bool merge : {true, false}) {
      const MergeResult all = run_merge(queue, batch, x, cols, kept, merge);
      bool equal = true;
      for (size_t n = 0; n < sizes.size(); n++) {
        const cuda::Image& image = batch.images[n];
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
