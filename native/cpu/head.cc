// The head: what it makes of its weights, and an image's way through it. The stages of an analysis are normalize, project, saliency,
// attention and read_out.
#include "../head.h"

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "../fold.h"
#include "analysis.h"

namespace desap {
// ------------------------------------------------------------------------------------------------------------- head

// The first layer norm's weights are folded into the three projections; the rows that they read are only centred and scaled.
struct Head::State {
  HeadConfig config;
  LinearPointer w_q, w_k, w_v;
  Memory k_weight;          // with a class token: not packed, for its saliency
  LinearPointer w_read_out;
  RotatedReadOut read_out;  // without its weight and rotation, which are packed
  std::shared_ptr<const Rotation> rotation;
  LinearPointer w_out;      // for Intermediates::attention

  // results: where the analysis may lie that ends with the call; null: in memory of its own.
  Status analyze(Context&, const HiddenStates&, Encoding, const Intermediates&, Scratch* results,
                 std::unique_ptr<Analysis::State>*) const;
};

Head::Head(std::unique_ptr<State> state) : state_(std::move(state)) {}
Head::~Head() = default;
const HeadConfig& Head::config() const { return state_->config; }

Status Head::create(Context& context, const HeadConfig& config, const HeadWeights& weights, std::shared_ptr<Head>* head) try {
  auto state = std::make_unique<State>();
  const int64_t width = config.width, size = config.projection_dim;
  state->config = config;
  const auto project = [&](const float* weight, const float* bias, LinearPointer& linear, Memory* plain) {
    Rounded layer(fold_norm(weight, bias, weights.ln1_weight, weights.ln1_bias, width, width));
    DESAP_TRY(pack(context, layer.weight.data(), layer.bias.data(), width, width, linear));
    if (!plain) return Status{};
    plain->reset(static_cast<float*>(allocate_memory(layer.weight.size() * sizeof(float))));
    if (!*plain) return out_of_memory("weight");
    std::copy(layer.weight.begin(), layer.weight.end(), plain->get());
    return Status{};
  };
  DESAP_TRY(project(weights.q_weight, weights.q_bias, state->w_q, nullptr));
  DESAP_TRY(project(weights.k_weight, weights.k_bias, state->w_k, config.class_token ? &state->k_weight : nullptr));
  DESAP_TRY(project(weights.v_weight, weights.v_bias, state->w_v, nullptr));
  DESAP_TRY(pack(context, weights.out_weight, weights.out_bias, width, width, state->w_out));

  RotatedReadOut read_out = rotate_read_out(config, weights, context.pool.threads());
  DESAP_TRY(pack(context, read_out.weight.data(), read_out.bias.data(), width, width, state->w_read_out));
  auto rotation = std::make_shared<Rotation>();
  // Text and embeddings are turned in float32 at every precision.
  DESAP_TRY(pack(context, read_out.rotation.data(), nullptr, size, size, rotation->text, linear_pack_float32));
  std::vector<float> back(read_out.rotation.size());
  for (int64_t i = 0; i < size; i++) {
    for (int64_t j = 0; j < size; j++) back[static_cast<size_t>(j * size + i)] = read_out.rotation[static_cast<size_t>(i * size + j)];
  }
  DESAP_TRY(pack(context, back.data(), nullptr, size, size, rotation->embedding, linear_pack_float32));
  state->rotation = std::move(rotation);
  read_out.weight = read_out.rotation = {};
  state->read_out = std::move(read_out);
  head->reset(new Head(std::move(state)));
  return {};
} catch (const std::bad_alloc&) {
  return out_of_memory("weight");
}

// ---------------------------------------------------------------------------------------------------------- analyze

// One image on its way through the stages.
struct Head::Image {
  const State& head;
  Context& context;
  const HiddenStates& hidden;
  Encoding encoding;
  Intermediates copies;
  Analysis::State& result;
  Scratch scratch{context.arena};
  const float* states = nullptr;  // [N, D]
  Matrix normal{}, q{}, k{}, v{};
  Matrix words{};  // the rows of `normal` as layers of bfloat16 read them; no data where those round them by themselves
  // The attention always reads v. The saliency reads q and k: without a class token all of both; with one, the first row of q, and
  // k only where the attention has made it anyway.
  const bool reads_q = encoding == Encoding::qq || encoding == Encoding::qk || !head.config.class_token;
  const bool reads_k = encoding == Encoding::kk || encoding == Encoding::qk || !head.config.class_token;

  Status prepare();
  Status apply(const LinearPointer&, Matrix y);
  Status normalize();
  Status project();
  Status saliency();
  Status attention();
  Status read_out();
};

Status Head::Image::prepare() {
  DESAP_TRY(result.keep_features(context, hidden.data, hidden.half, hidden.hold, &states));
  const int64_t rows = hidden.rows, width = head.config.width;
  normal = padded(scratch, rows, width);
  q = padded(scratch, reads_q ? rows : 1, width);
  k = padded(scratch, reads_k ? rows : 0, width);
  v = padded(scratch, rows, width);
  const bool whole_words = width / head.config.heads % 2 == 0;  // of a head
  if (context.bfloat16 && whole_words) words = padded(scratch, rows, width / 2);
  return scratch.failed() ? out_of_memory("analyze") : Status{};
}

// y = the layer of the first rows of `normal`.
Status Head::Image::apply(const LinearPointer& layer, Matrix y) {
  if (words.data) return context.kernels->linear_words(context, {words.data, y.rows, words.cols, words.ld}, *layer, y);
  return linear(context, {normal.data, y.rows, normal.cols, normal.ld}, *layer, y);
}

Status Head::Image::normalize() {
  const ConstMatrix x{states, normal.rows, normal.cols, normal.cols};
  return rename(context.kernels->normalize(context, x, head.config.epsilon, normal, words, result.norms), "hidden");
}

Status Head::Image::project() {
  DESAP_TRY(apply(head.w_q, q));
  DESAP_TRY(apply(head.w_k, k));
  return apply(head.w_v, v);
}

Status Head::Image::saliency() {
  const HeadConfig& config = head.config;
  if (reads_k) return desap::saliency(context, q, k, config.heads, config.class_token, {}, result.saliency);
  return context.kernels->folded_saliency(context, normal, q.data, head.k_weight.get(), config.heads, result.saliency);
}

// Into `normal`, whose last readers are behind it.
Status Head::Image::attention() {
  const ConstMatrix operands[][2] = {{q, q}, {k, k}, {v, v}, {q, k}};  // in the order of Encoding
  const ConstMatrix* const o = operands[static_cast<int>(encoding)];
  if (copies.context) words = {};  // it is wanted in float32
  DESAP_TRY(context.kernels->attention(context, o[0], o[1], v, head.config.heads, normal, words));
  if (copies.context) copy_rows(normal, copies.context);
  return {};
}

Status Head::Image::read_out() {
  const Matrix projected = v;
  if (copies.attention) {
    DESAP_TRY(apply(head.w_out, projected));
    copy_rows(projected, copies.attention);
  }
  const int64_t size = result.projection_dim;
  const Matrix embeddings{result.embeddings, result.rows, size, size};
  DESAP_TRY(apply(head.w_read_out, projected));
  DESAP_TRY(rename(context.kernels->folded_read_out(context, projected, head.read_out, head.config.epsilon, embeddings), "hidden"));
  if (!head.config.class_token) return result.average(context);
  std::copy_n(result.embeddings, size, result.global);
  return {};
}

Status Head::State::analyze(Context& context, const HiddenStates& hidden, Encoding encoding, const Intermediates& copies,
                            Scratch* results, std::unique_ptr<Analysis::State>* analysis) const {
  auto result = std::make_unique<Analysis::State>();
  result->rotation = rotation;
  result->kernels = context.kernels;
  result->rows = hidden.rows;
  result->patches = hidden.rows - (config.class_token ? 1 : 0);
  result->width = config.width;
  result->projection_dim = config.projection_dim;
  DESAP_TRY(result->allocate(results));

  AnalyzeTimings& times = result->timings;
  Stopwatch watch;
  Image image{*this, context, hidden, encoding, copies, *result};
  DESAP_TRY(image.prepare());
  DESAP_TRY(image.normalize());
  times.normalize = watch.lap();
  DESAP_TRY(image.project());
  times.project = watch.lap();
  DESAP_TRY(image.saliency());
  times.saliency = watch.lap();
  DESAP_TRY(image.attention());
  times.attention = watch.lap();
  DESAP_TRY(image.read_out());
  times.read_out = watch.lap();
  *analysis = std::move(result);
  return {};
}

Status Head::analyze(Context& context, const HiddenStates* images, int64_t count, Encoding encoding,
                     const Intermediates* copies, std::shared_ptr<Analysis>* analyses) const try {
  std::vector<std::shared_ptr<Analysis>> results;
  for (int64_t i = 0; i < count; i++) {
    std::unique_ptr<Analysis::State> state;
    const Intermediates wanted = copies ? copies[i] : Intermediates{};
    DESAP_TRY(of_image(state_->analyze(context, images[i], encoding, wanted, nullptr, &state), i, count));
    results.push_back(std::shared_ptr<Analysis>(new Analysis(std::move(state))));
  }
  std::move(results.begin(), results.end(), analyses);
  return {};
} catch (const std::bad_alloc&) {
  return out_of_memory("analyze");
}

Status Head::prune(Context& context, const HiddenStates* images, int64_t count, Encoding encoding,
                   const PruneRequest* requests, const PruneOutput* outputs, AnalyzeTimings* analyze_timings,
                   PruneTimings* prune_timings) const try {
  for (int64_t i = 0; i < count; i++) {
    HiddenStates hidden = images[i];
    if (!hidden.hold) hidden.hold = Hold(Hold(), hidden.data);  // the caller keeps the rows until this returns: no copy
    Scratch results(context.arena);
    std::unique_ptr<Analysis::State> state;
    DESAP_TRY(of_image(state_->analyze(context, hidden, encoding, {}, &results, &state), i, count));
    const Analysis analysis(std::move(state));
    PruneTimings* const timings = prune_timings ? prune_timings + i : nullptr;
    DESAP_TRY(of_image(analysis.prune(context, requests[i], outputs[i], timings), i, count));
    if (analyze_timings) analyze_timings[i] = analysis.timings();
  }
  return {};
} catch (const std::bad_alloc&) {
  return out_of_memory("prune");
}

}  // namespace desap
