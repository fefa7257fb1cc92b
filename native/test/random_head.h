// A head with random weights, images and questions for it, and room for the answers.
#pragma once

#include "../head.h"
#include "harness.h"

namespace desap::test {

struct HeadShape {
  int64_t rows, width, heads, projection_dim;
  bool class_token;
  int64_t text_tokens, keep;
  int64_t patches() const { return rows - (class_token ? 1 : 0); }
};

// CLIP ViT-L/14 at 336 pixels, a question of 30 tokens.
constexpr HeadShape llava{577, 1024, 16, 768, true, 30, 64};

// Weights of variance 1 / D: activations keep their size.
struct RandomWeights {
  explicit RandomWeights(const HeadShape& shape, uint64_t seed = 1)
      : config{shape.width, shape.heads, shape.projection_dim, shape.class_token, 1e-5f} {
    Random random(seed);
    const int64_t d = shape.width;
    const float spread = 1 / std::sqrt(static_cast<float>(d));
    for (Floats* gain : {&ln1_weight, &post_weight}) {
      *gain = random.floats(d, 0.1f);
      for (float& x : *gain) x += 1;
    }
    for (Floats* bias : {&ln1_bias, &q_bias, &k_bias, &v_bias, &out_bias, &post_bias}) *bias = random.floats(d, 0.1f);
    for (Floats* matrix : {&q, &k, &v, &out}) *matrix = random.floats(d * d, spread);
    projection = random.floats(shape.projection_dim * d, spread);
  }
  HeadWeights weights() const {
    return {ln1_weight.data(),  ln1_bias.data(),  q.data(),         q_bias.data(), k.data(),
            k_bias.data(),      v.data(),         v_bias.data(),    out.data(),    out_bias.data(),
            post_weight.data(), post_bias.data(), projection.data()};
  }

  HeadConfig config;
  Floats ln1_weight, ln1_bias, q, q_bias, k, k_bias, v, v_bias, out, out_bias, post_weight, post_bias, projection;
};

// Images of one shape, each with its own data and question. `data` keeps the hidden states where the caller put them:
// plain memory unless it says otherwise.
struct RandomImages {
  RandomImages(const HeadShape& s, int64_t images, uint64_t seed = 2) : shape(s), count(images) {
    Random random(seed);
    hidden = random.floats(count * shape.rows * shape.width);
    text = random.floats(count * shape.text_tokens * shape.projection_dim);
  }
  const float* image(int64_t i) const { return hidden.data() + i * shape.rows * shape.width; }
  std::vector<HiddenStates> states() const {
    std::vector<HiddenStates> list;
    for (int64_t i = 0; i < count; i++) list.push_back({image(i), false, shape.rows, nullptr});
    return list;
  }
  std::vector<PruneRequest> requests() const {
    std::vector<PruneRequest> list;
    for (int64_t i = 0; i < count; i++) {
      const ConstMatrix question{text.data() + i * shape.text_tokens * shape.projection_dim, shape.text_tokens, shape.projection_dim,
                              shape.projection_dim};
      list.push_back({question,
                      nullptr,
                      shape.text_tokens - 1,
                      shape.keep,
                      shape.keep / 2,
                      Alignment::fcma,
                      0.1f,
                      nullptr,
                      nullptr,
                      true,
                      {nullptr, 0, 0, 0},
                      Complement::saliency,
                      {nullptr, 0, 0, 0}});
    }
    return list;
  }

  HeadShape shape;
  int64_t count;
  Floats hidden, text;
};

// What pruning writes, for images of one shape; starts as NaN and -1.
struct Answers {
  Answers(const HeadShape& s, int64_t images) : shape(s), count(images) {
    const size_t n = static_cast<size_t>(images), kept = n * static_cast<size_t>(shape.keep),
                 patches = n * static_cast<size_t>(shape.patches());
    tokens.assign(kept * static_cast<size_t>(shape.width), NAN);
    task.assign(patches, NAN);
    indices.assign(kept, -1);
    assignment.assign(patches, -1);
    counts.assign(kept, -1);
    source.assign(kept, 0xff);
  }
  std::vector<PruneOutput> outputs() {
    std::vector<PruneOutput> list;
    for (int64_t i = 0; i < count; i++) {
      const int64_t k = i * shape.keep, p = i * shape.patches();
      list.push_back({tokens.data() + k * shape.width,
                      indices.data() + k,
                      source.data() + k,
                      assignment.data() + p,
                      counts.data() + k,
                      task.data() + p,
                      nullptr,
                      {nullptr, nullptr, nullptr}});
    }
    return list;
  }
  // All of it as bits.
  std::vector<uint8_t> bytes() const {
    std::vector<uint8_t> all(source);
    const auto add = [&all](const auto& x) {
      const auto* begin = reinterpret_cast<const uint8_t*>(x.data());
      all.insert(all.end(), begin, begin + x.size() * sizeof x[0]);
    };
    add(tokens), add(task), add(indices), add(assignment), add(counts);
    return all;
  }

  HeadShape shape;
  int64_t count;
  Floats tokens, task;
  Ints indices, assignment, counts;
  std::vector<uint8_t> source;
};

// A_d [N, E], the class token's row first where there is one.
inline Status read_embeddings(const Analysis& analysis, float* out) {
  const int64_t skipped = analysis.rows() - analysis.patches();
  if (skipped > 0) DESAP_TRY(analysis.read_global(out));
  return analysis.read_patch_embeddings(out + skipped * analysis.projection_dim());
}

}  // namespace desap::test
