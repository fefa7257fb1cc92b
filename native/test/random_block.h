// The last block of an encoder with random weights, and what it computes in float64, as the specification writes it down.
#pragma once

#include "../block.h"
#include "harness.h"
#include "reference.h"

namespace desap::test {

struct BlockShape {
  int64_t width, heads;
  Norm norm;
  bool biases;
  int64_t mlp_width;  // 0: no read-out
};

// Weights of variance 1 / D: activations keep their size.
struct RandomBlock {
  explicit RandomBlock(const BlockShape& shape, uint64_t seed = 1)
      : config{shape.width, shape.heads, shape.norm, 1e-5f, shape.mlp_width}, biases(shape.biases) {
    Random random(seed);
    const int64_t d = shape.width, f = shape.mlp_width;
    const auto matrix = [&](int64_t rows, int64_t cols) { return random.floats(rows * cols, 1 / std::sqrt(static_cast<float>(cols))); };
    for (Floats* gain : {&norm_weight, &post_weight, &head_norm_weight}) {
      *gain = random.floats(d, 0.1f);
      for (float& x : *gain) x += 1;
    }
    for (Floats* bias : {&norm_bias, &q_bias, &k_bias, &v_bias, &out_bias, &post_bias, &head_q_bias, &head_k_bias, &head_v_bias, &head_out_bias, &head_norm_bias, &fc2_bias})
      *bias = random.floats(d, 0.1f);
    fc1_bias = random.floats(f, 0.1f);
    probe = random.floats(d);
    for (Floats* square : {&q, &k, &v, &out, &head_q, &head_k, &head_v, &head_out}) *square = matrix(d, d);
    fc1 = matrix(f, d), fc2 = matrix(d, f > 0 ? f : 1);
  }
  BlockWeights weights() const {
    const auto bias = [&](const Floats& x) { return biases ? x.data() : nullptr; };
    return {norm_weight.data(),      config.norm == Norm::rms ? nullptr : norm_bias.data(),
            q.data(),                bias(q_bias),
            k.data(),                bias(k_bias),
            v.data(),                bias(v_bias),
            out.data(),              bias(out_bias),
            post_weight.data(),      post_bias.data(),
            probe.data(),
            head_q.data(),           head_q_bias.data(),
            head_k.data(),           head_k_bias.data(),
            head_v.data(),           head_v_bias.data(),
            head_out.data(),         head_out_bias.data(),
            head_norm_weight.data(), head_norm_bias.data(),
            fc1.data(),              fc1_bias.data(),
            fc2.data(),              fc2_bias.data()};
  }

  BlockConfig config;
  bool biases;
  Floats norm_weight, norm_bias, q, q_bias, k, k_bias, v, v_bias, out, out_bias;
  Floats post_weight, post_bias, probe, head_q, head_q_bias, head_k, head_k_bias, head_v, head_v_bias, head_out, head_out_bias;
  Floats head_norm_weight, head_norm_bias, fc1, fc1_bias, fc2, fc2_bias;
};

// The angles of a rotary table, times `gain`: the same for both halves of a head.
struct RandomRotary {
  RandomRotary(int64_t rows, int64_t size, uint64_t seed, float gain = 1) {
    Random random(seed);
    for (int64_t i = 0; i < rows; i++) {
      const Floats angles = random.floats(size / 2, 2);
      for (int64_t j = 0; j < size; j++) {
        cos.push_back(gain * std::cos(angles[static_cast<size_t>(j % (size / 2))]));
        sin.push_back(gain * std::sin(angles[static_cast<size_t>(j % (size / 2))]));
      }
    }
  }
  Rotary tables() const { return {cos.data(), sin.data()}; }
  Floats cos, sin;
};

// ---- In float64 -------------------------------------------------------------------------------------------------------

inline reference::Array rms_norm64(const reference::Array& x, const Floats& weight, double epsilon) {
  reference::Array y = x;
  for (int64_t i = 0; i < x.rows; i++) {
    const double scale = 1 / std::sqrt(reference::dot(x, i, x, i) / static_cast<double>(x.cols) + epsilon);
    for (int64_t j = 0; j < x.cols; j++) y.at(i, j) *= scale * weight[static_cast<size_t>(j)];
  }
  return y;
}

inline reference::Array rotate64(const reference::Array& x, int64_t heads, Rotary table) {
  if (!table.cos) return x;
  reference::Array y = x;
  const int64_t size = x.cols / heads, half = size / 2;
  for (int64_t i = 0; i < x.rows; i++) {
    for (int64_t c = 0; c < x.cols; c++) {
      const int64_t j = c % size;
      const double turned = j < half ? -x.at(i, c + half) : x.at(i, c - half);
      y.at(i, c) = x.at(i, c) * static_cast<double>(table.cos[i * size + j]) + turned * static_cast<double>(table.sin[i * size + j]);
    }
  }
  return y;
}

struct PooledHead64 {
  reference::Array embeddings, global;
  Doubles saliency;
};
inline PooledHead64 siglip_read_out64(const RandomBlock& w, const reference::Array& attention) {
  const int64_t d = w.config.width, heads = w.config.heads, size = d / heads, rows = attention.rows, f = w.config.mlp_width;
  const auto row = [](const Floats& x) { return reference::Array(x, 1, static_cast<int64_t>(x.size())); };
  const auto layer = [&](const reference::Array& x, const Floats& weight, const Floats& bias, int64_t out) {
    const reference::Array b = row(bias);
    return reference::linear(x, {weight, out, x.cols}, &b);
  };
  const reference::Array h = reference::layer_norm(attention, row(w.post_weight), row(w.post_bias), w.config.epsilon);
  const reference::Array keys = layer(h, w.head_k, w.head_k_bias, d), values = layer(h, w.head_v, w.head_v_bias, d);
  const reference::Array query = layer(row(w.probe), w.head_q, w.head_q_bias, d);
  PooledHead64 result{reference::Array(rows, d), reference::Array(1, d), Doubles(static_cast<size_t>(rows))};
  reference::Array gathered(rows + 1, d);  // the values, and behind them what the probe gathers
  std::copy(values.data.begin(), values.data.end(), gathered.data.begin());
  for (int64_t head = 0; head < heads; head++) {
    const Doubles p = reference::attention_row(query, keys, heads, head, 0);
    for (int64_t j = 0; j < rows; j++) {
      result.saliency[static_cast<size_t>(j)] += p[static_cast<size_t>(j)] / static_cast<double>(heads);
      for (int64_t c = head * size; c < (head + 1) * size; c++) gathered.at(rows, c) += p[static_cast<size_t>(j)] * values.at(j, c);
    }
  }
  const reference::Array z = layer(gathered, w.head_out, w.head_out_bias, d);
  reference::Array wide = layer(reference::layer_norm(z, row(w.head_norm_weight), row(w.head_norm_bias), w.config.epsilon), w.fc1, w.fc1_bias, f);
  for (double& x : wide.data) x = 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
  reference::Array sum = layer(wide, w.fc2, w.fc2_bias, d);
  for (size_t i = 0; i < sum.data.size(); i++) sum.data[i] += z.data[i];
  const reference::Array unit = reference::unit_rows(sum);
  std::copy_n(unit.data.begin(), rows * d, result.embeddings.data.begin());
  std::copy_n(unit.data.begin() + rows * d, d, result.global.data.begin());
  return result;
}

struct Block64 {
  reference::Array attention, self_attention;
  Doubles saliency, unit_saliency;
  PooledHead64 pooled;
};
inline Block64 block64(const RandomBlock& w, const Floats& hidden, Rotary rotary, const Ints& unit, int64_t units, Encoding encoding) {
  const int64_t d = w.config.width, heads = w.config.heads, rows = static_cast<int64_t>(hidden.size()) / d;
  const reference::Array x(hidden, rows, d);
  const reference::Array normal = w.config.norm == Norm::rms ? rms_norm64(x, w.norm_weight, w.config.epsilon)
                                                    : reference::layer_norm(x, {w.norm_weight, 1, d}, {w.norm_bias, 1, d}, w.config.epsilon);
  const auto layer = [&](const reference::Array& from, const Floats& weight, const Floats& bias) {
    const reference::Array b(bias, 1, d);
    return reference::linear(from, {weight, d, d}, w.biases ? &b : nullptr);
  };
  const reference::Array q = layer(normal, w.q, w.q_bias), k = layer(normal, w.k, w.k_bias), v = layer(normal, w.v, w.v_bias);
  const reference::Array& left = encoding == Encoding::kk ? k : encoding == Encoding::vv ? v : q;
  const reference::Array& right = encoding == Encoding::qk ? k : left;
  const reference::Array rotated_q = rotate64(q, heads, rotary), rotated_k = rotate64(k, heads, rotary);
  Block64 result{layer(reference::attention(left, right, v, heads), w.out, w.out_bias),
                 layer(reference::attention(rotated_q, rotated_k, v, heads), w.out, w.out_bias),
                 reference::saliency(rotated_q, rotated_k, heads, false),
                 Doubles(static_cast<size_t>(units)),
                 {reference::Array(0, d), reference::Array(0, d), {}}};
  Doubles members(static_cast<size_t>(units));
  for (size_t i = 0; i < unit.size(); i++) {
    result.unit_saliency[static_cast<size_t>(unit[i])] += result.saliency[i];
    members[static_cast<size_t>(unit[i])]++;
  }
  for (size_t u = 0; u < members.size(); u++) result.unit_saliency[u] /= members[u];
  if (w.config.mlp_width > 0) result.pooled = siglip_read_out64(w, result.attention);
  return result;
}

}  // namespace desap::test
