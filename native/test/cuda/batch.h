// Images one after the other, as the kernels' records say where they lie, and what compares results of batches.
#pragma once

#include <algorithm>

#include "cuda_harness.h"

namespace desap::test {

// Bit for bit.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}
template <class T>
std::vector<T> part(const std::vector<T>& x, int64_t first, int64_t count) {
  return {x.begin() + first, x.begin() + first + count};
}

// Waits for the queue.
inline void finish(cuda::Queue& queue) {
  queue.note(cudaStreamSynchronize(queue.stream));
  check(!queue.failed(), cudaGetErrorString(queue.error));
}

// Each image has its end-of-text vector in the row after its text tokens.
struct Batch {
  struct Sizes {
    int patches, text_tokens = 1, keep = 1, task_keep = 0;
  };
  explicit Batch(const std::vector<Sizes>& list, bool class_token = true) {
    for (const Sizes& sizes : list) {
      cuda::Image image{};
      image.row = static_cast<int>(extent.rows);
      image.rows = sizes.patches + (class_token ? 1 : 0);
      image.patch = static_cast<int>(extent.patches);
      image.patches = sizes.patches;
      image.text = text_rows;
      image.text_tokens = sizes.text_tokens;
      image.end_of_text = text_rows + sizes.text_tokens;
      image.keep = sizes.keep;
      image.task_keep = sizes.task_keep;
      image.kept = static_cast<int>(extent.kept);
      images.push_back(image);
      text_rows += sizes.text_tokens + 1;
      extent.images++;
      extent.rows += image.rows;
      extent.patches += sizes.patches;
      extent.kept += sizes.keep;
      extent.max_rows = std::max(extent.max_rows, image.rows);
      extent.max_patches = std::max(extent.max_patches, sizes.patches);
      extent.max_text_tokens = std::max(extent.max_text_tokens, sizes.text_tokens);
      extent.max_keep = std::max(extent.max_keep, sizes.keep);
    }
  }
  // Images of so many rows, of which nothing is asked.
  static Batch of_rows(const std::vector<int>& rows, bool class_token) {
    std::vector<Sizes> list;
    for (int n : rows) list.push_back({n - (class_token ? 1 : 0)});
    return Batch(list, class_token);
  }

  std::vector<cuda::Image> images;
  cuda::Extent extent{};
  int text_rows = 0;  // end-of-text rows included
};

}  // namespace desap::test
