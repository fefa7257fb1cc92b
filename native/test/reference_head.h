// The whole head in float64, as the specification writes it down.
#pragma once

#include "random_head.h"
#include "reference.h"

namespace desap::test {

struct HeadReference {
  Doubles context, attention, embedding, saliency, task;
};

// Of one image and its question.
inline HeadReference head_reference(const RandomWeights& w, const HeadShape& s, const float* hidden, const float* text, Encoding encoding) {
  using reference::Array;
  const int64_t d = s.width, first = s.class_token ? 1 : 0;
  const auto vector = [](const Floats& x) { return Array(x, 1, static_cast<int64_t>(x.size())); };
  const auto project = [&](const Array& x, const Floats& weight, const Floats& bias) {
    const Array b = vector(bias);
    return reference::linear(x, {weight, d, d}, &b);
  };
  const Array normal = reference::layer_norm({Floats(hidden, hidden + s.rows * d), s.rows, d}, vector(w.ln1_weight), vector(w.ln1_bias), 1e-5f);
  const Array q = project(normal, w.q, w.q_bias), k = project(normal, w.k, w.k_bias), v = project(normal, w.v, w.v_bias);
  const Array& left = encoding == Encoding::kk ? k : encoding == Encoding::vv ? v : q;
  const Array& right = encoding == Encoding::qk ? k : left;
  const Array context = reference::attention(left, right, v, s.heads), attention = project(context, w.out, w.out_bias);
  const Array post_normal = reference::layer_norm(attention, vector(w.post_weight), vector(w.post_bias), 1e-5f);
  const Array embedding = reference::unit_rows(reference::linear(post_normal, {w.projection, s.projection_dim, d}, nullptr));
  const Array text_tokens = reference::unit_rows({Floats(text, text + s.text_tokens * s.projection_dim), s.text_tokens, s.projection_dim});
  Array patches(s.patches(), s.projection_dim), query(1, s.projection_dim), global(1, s.projection_dim);
  std::copy(embedding.data.begin() + first * s.projection_dim, embedding.data.end(), patches.data.begin());
  std::copy(text_tokens.data.end() - s.projection_dim, text_tokens.data.end(), query.data.begin());
  for (int64_t i = 0; i < (s.class_token ? 1 : s.rows); i++) {
    for (int64_t j = 0; j < s.projection_dim; j++) global.at(0, j) += embedding.at(i, j);
  }
  return {context.data, attention.data, embedding.data, reference::saliency(q, k, s.heads, s.class_token),
          reference::align(patches, text_tokens, query, reference::unit_rows(global), Alignment::fcma, 0.1).task};
}

}  // namespace desap::test
