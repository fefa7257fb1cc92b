// The block head: what it makes of its weights, and a sequence's way through it.
//
// Memory, in arrays [N, D]: the hidden states and the outputs are the caller's; beside them lie the normalised rows, later the attentions'
// contexts, and q and k. The values go into the attention's output, which is written last. What the attention does not read of q and k is
// given back before it begins, and all of it before the read-out. The block's own attention comes first, and its output has room for k
// where the other one does not read it.
#include "../block.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>
#include <vector>

#include "analysis.h"

namespace desap {
namespace {

// SigLIP's head, packed.
struct PoolingHead {
  std::vector<float> post_norm_weight, post_norm_bias, norm_weight, norm_bias, query;
  LinearPointer key, value, out, fc1, fc2;
};

}  // namespace

// The norm's weights are folded into the three projections; the rows that they read are only scaled, and centred by a layer norm.
struct Block::State {
  BlockConfig config;
  LinearPointer w_q, w_k, w_v, w_out;
  PoolingHead pooling;

  Status pack_pooling(Context&, const BlockWeights&);
  Status analyze(Context&, const BlockStates&, Encoding, const BlockOutput&, BlockTimings&) const;
  Status read_out(Context&, ConstMatrix attention, const BlockOutput&) const;
};

Block::Block(std::unique_ptr<State> state) : state_(std::move(state)) {}
Block::~Block() = default;
const BlockConfig& Block::config() const { return state_->config; }

Status Block::create(Context& context, const BlockConfig& config, const BlockWeights& weights, std::shared_ptr<Block>* block) try {
  auto state = std::make_unique<State>();
  const int64_t width = config.width;
  state->config = config;
  const auto project = [&](const float* weight, const float* bias, LinearPointer& linear) {
    const Rounded layer(fold_norm(weight, bias, weights.norm_weight, weights.norm_bias, width, width));
    return pack(context, layer.weight.data(), layer.bias.data(), width, width, linear);
  };
  DESAP_TRY(project(weights.q_weight, weights.q_bias, state->w_q));
  DESAP_TRY(project(weights.k_weight, weights.k_bias, state->w_k));
  DESAP_TRY(project(weights.v_weight, weights.v_bias, state->w_v));
  DESAP_TRY(pack(context, weights.out_weight, weights.out_bias, width, width, state->w_out));
  if (config.mlp_width > 0) DESAP_TRY(state->pack_pooling(context, weights));
  block->reset(new Block(std::move(state)));
  return {};
} catch (const std::bad_alloc&) {
  return out_of_memory("weight");
}

Status Block::State::pack_pooling(Context& context, const BlockWeights& weights) {
  const int64_t width = config.width, inner = config.mlp_width;
  const auto copy = [&](const float* from) { return std::vector<float>(from, from + width); };
  pooling.post_norm_weight = copy(weights.post_norm_weight);
  pooling.post_norm_bias = copy(weights.post_norm_bias);
  pooling.norm_weight = copy(weights.head_norm_weight);
  pooling.norm_bias = copy(weights.head_norm_bias);
  for (int64_t i = 0; i < width; i++) {  // the probe behind its projection
    double sum = weights.head_q_bias ? weights.head_q_bias[i] : 0;
    for (int64_t j = 0; j < width; j++) sum += static_cast<double>(weights.head_q_weight[i * width + j]) * weights.probe[j];
    pooling.query.push_back(static_cast<float>(sum));
  }
  DESAP_TRY(pack(context, weights.head_k_weight, weights.head_k_bias, width, width, pooling.key));
  DESAP_TRY(pack(context, weights.head_v_weight, weights.head_v_bias, width, width, pooling.value));
  DESAP_TRY(pack(context, weights.head_out_weight, weights.head_out_bias, width, width, pooling.out));
  DESAP_TRY(pack(context, weights.fc1_weight, weights.fc1_bias, inner, width, pooling.fc1));
  return pack(context, weights.fc2_weight, weights.fc2_bias, width, inner, pooling.fc2);
}

// ---------------------------------------------------------------------------------------------------------- analyze

namespace {

// The first row that is not finite.
Status check_finite(const char* what, const float* x, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < cols; j++) {
      if (!std::isfinite(x[i * cols + j])) return {Code::not_finite, what, i};
    }
  }
  return {};
}

Status check_rotary(Rotary rotary, int64_t rows, int64_t cols) {
  if (!rotary.cos) return {};
  DESAP_TRY(check_finite("cos", rotary.cos, rows, cols));
  return check_finite("sin", rotary.sin, rows, cols);
}

}  // namespace

// One sequence on its way to the attention's rows.
struct Block::Sequence {
  const State& block;
  Context& context;
  const BlockStates& states;
  Encoding encoding;
  const BlockOutput& output;
  Matrix attention, own;  // [N, D], the decoupled attention and the block's own; no rows where none is wanted
  BlockTimings& times;
  Stopwatch watch{};
  Scratch scratch{context.arena};
  const int64_t rows = states.hidden.rows, width = block.config.width, heads = block.config.heads;
  const bool attends = attention.rows > 0, owns = own.rows > 0, salient = output.saliency || output.unit_saliency;
  // What the attention reads besides v.
  const bool attends_q = attends && (encoding == Encoding::qq || encoding == Encoding::qk);
  const bool attends_k = attends && (encoding == Encoding::kk || encoding == Encoding::qk);
  Matrix normal{}, q{}, k{}, v{};

  Status prepare();
  Status normalize();
  Status saliency();
  Status attend();
  Status project(const LinearPointer& layer, Matrix y);
};

Status Block::Sequence::prepare() {
  normal = padded(scratch, rows, width);
  if (attends_q || owns) q = padded(scratch, rows, width);
  k = attends_k ? padded(scratch, rows, width) : own;
  v = attends ? attention : padded(scratch, owns ? rows : 0, width);
  return scratch.failed() ? out_of_memory("analyze") : Status{};
}

Status Block::Sequence::normalize() {
  const HiddenStates& hidden = states.hidden;
  Scratch passing(context.arena);
  const float* x = static_cast<const float*>(hidden.data);
  if (hidden.half) {
    float* wide = passing.floats(rows * width);
    if (passing.failed()) return out_of_memory("analyze");
    DESAP_TRY(convert_half(context, static_cast<const uint16_t*>(hidden.data), rows * width, wide));
    x = wide;
  }
  const ConstMatrix all{x, rows, width, width};
  const float epsilon = block.config.epsilon;
  DESAP_TRY(rename(block.config.norm == Norm::rms ? rms_norm(context, all, nullptr, epsilon, normal)
                                                  : layer_norm(context, all, nullptr, nullptr, epsilon, normal),
                   "hidden"));
  times.normalize = watch.lap();
  return {};
}

Status Block::Sequence::project(const LinearPointer& layer, Matrix y) {
  DESAP_TRY(linear(context, normal, *layer, y));
  times.project += watch.lap();
  return {};
}

// With the block's own attention, which has the same weights. Makes q and k, too, and v once for both attentions. Either context goes
// into `normal`, whose last reader as rows of the norm is behind it.
Status Block::Sequence::saliency() {
  if (q.rows > 0) DESAP_TRY(project(block.w_q, q));
  if (k.rows > 0) DESAP_TRY(project(block.w_k, k));
  if (owns) DESAP_TRY(project(block.w_v, v));
  if (!salient && !owns) return {};
  DESAP_TRY(check_rotary(states.rotary, rows, width / heads));
  Scratch passing(context.arena);
  const Matrix queries = q.rows > 0 ? q : padded(passing, rows, width), keys = k.rows > 0 ? k : padded(passing, rows, width);
  float* scores = output.saliency ? output.saliency : passing.floats(rows);
  if (passing.failed()) return out_of_memory("analyze");
  if (q.rows == 0) DESAP_TRY(project(block.w_q, queries));
  if (k.rows == 0) DESAP_TRY(project(block.w_k, keys));
  if (owns) {
    DESAP_TRY(self_attention(context, q, k, v, heads, states.rotary, normal, scores));
    DESAP_TRY(linear(context, normal, *block.w_out, own));
  } else {
    DESAP_TRY(desap::saliency(context, queries, keys, heads, false, states.rotary, scores));
  }
  if (output.unit_saliency && states.unit) DESAP_TRY(pool(context, scores, states.unit, rows, states.units, output.unit_saliency));
  if (output.unit_saliency && !states.unit) std::copy_n(scores, rows, output.unit_saliency);
  times.saliency = watch.lap();
  return {};
}

Status Block::Sequence::attend() {
  if (!attends) return {};
  if (!owns) DESAP_TRY(project(block.w_v, v));
  const ConstMatrix operands[][2] = {{q, q}, {k, k}, {v, v}, {q, k}};  // in the order of Encoding
  const ConstMatrix* const o = operands[static_cast<int>(encoding)];
  DESAP_TRY(desap::attention(context, o[0], o[1], v, heads, normal));
  DESAP_TRY(linear(context, normal, *block.w_out, attention));
  times.attention = watch.lap();
  return {};
}

Status Block::State::read_out(Context& context, ConstMatrix attention, const BlockOutput& output) const {
  const PoolingHead& head = pooling;
  const SiglipReadOut weights{head.post_norm_weight.data(), head.post_norm_bias.data(), head.query.data(),
                              head.key.get(),               head.value.get(),           head.out.get(),
                              head.norm_weight.data(),      head.norm_bias.data(),      head.fc1.get(),
                              head.fc2.get(),               config.heads,               config.epsilon};
  const Matrix embeddings{output.embeddings, attention.rows, attention.cols, attention.cols};
  return rename(siglip_read_out(context, attention, weights, embeddings, output.global, output.probe_saliency), "hidden");
}

Status Block::State::analyze(Context& context, const BlockStates& states, Encoding encoding, const BlockOutput& output,
                             BlockTimings& times) const {
  const int64_t rows = states.hidden.rows, width = config.width;
  Scratch scratch(context.arena);
  const Matrix attention = output.attention ? Matrix{output.attention, rows, width, width} : padded(scratch, output.embeddings ? rows : 0, width);
  const Matrix own = output.self_attention ? Matrix{output.self_attention, rows, width, width} : Matrix{};
  if (scratch.failed()) return out_of_memory("analyze");
  {
    Sequence sequence{*this, context, states, encoding, output, attention, own, times};
    DESAP_TRY(sequence.prepare());
    DESAP_TRY(sequence.normalize());
    DESAP_TRY(sequence.saliency());
    DESAP_TRY(sequence.attend());
  }
  if (!output.embeddings) return {};
  Stopwatch watch;
  DESAP_TRY(read_out(context, attention, output));
  times.read_out = watch.lap();
  return {};
}

Status Block::analyze(Context& context, const BlockStates* images, int64_t count, Encoding encoding, const BlockOutput* outputs,
                      BlockTimings* timings) const {
  for (int64_t i = 0; i < count; i++) {
    BlockTimings times{};
    DESAP_TRY(of_image(state_->analyze(context, images[i], encoding, outputs[i], times), i, count));
    if (timings) timings[i] = times;
  }
  return {};
}

}  // namespace desap
