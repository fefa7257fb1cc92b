// An analysis from parts that another encoder could have made, and a question about it.
#pragma once

#include "../head.h"
#include "harness.h"

namespace desap::test {

// Parts that another encoder could have made: neither embeddings nor global are unit rows.
struct Parts {
  explicit Parts(int64_t patches_, int64_t size_, int64_t width_, uint64_t seed = 3) : patches(patches_), size(size_), width(width_) {
    Random random(seed);
    embeddings = random.floats(patches * size, 3), global = random.floats(size, 0.2f);
    saliency = random.floats(patches), features = random.floats(patches * width);
    text = random.floats(5 * size);
    for (float& x : saliency) x = std::fabs(x);
  }
  AnalysisParts parts(bool with_global, const Hold& hold = nullptr) const {
    AnalysisParts list{};
    list.patch_embeddings = {embeddings.data(), patches, size, size};
    list.global = with_global ? global.data() : nullptr;
    list.saliency = saliency.data();
    list.features = features.data();
    list.width = width;
    list.hold = hold;
    return list;
  }
  PruneRequest request(int64_t keep, int64_t task_keep) const {
    PruneRequest list{};
    list.text = {text.data(), 5, size, size};
    list.end_of_text_row = 4;
    list.keep = keep;
    list.task_keep = task_keep;
    list.lambda = 0.1f;
    list.merge = true;
    return list;
  }

  int64_t patches, size, width;
  Floats embeddings, global, saliency, features, text;
};

}  // namespace desap::test
