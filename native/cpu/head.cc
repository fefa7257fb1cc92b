#include "../head.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "dispatch.h"
#include "memory.h"

namespace desap {
namespace {

// Milliseconds since the last lap.
class Stopwatch {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double milliseconds = std::chrono::duration<double, std::milli>(now - last_).count();
    last_ = now;
    return milliseconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// A kernel names its own input; the caller of the head knows another name for it.
Status rename(Status status, const char* what) {
  if (status.code == Code::not_finite) status.what = what;
  return status;
}

// Of a call for several images an error says which.
Status of_image(Status status, int64_t image, int64_t count) {
  if (!status.good() && count > 1) status.image = image;
  return status;
}

struct LinearFree {
  void operator()(Linear* linear) const { linear_free(linear); }
};
using LinearPointer = std::unique_ptr<Linear, LinearFree>;

Status pack(Context& context, const float* weight, const float* bias, int64_t out, int64_t in, LinearPointer& linear,
            decltype(&linear_pack) pack_one = linear_pack) {
  Linear* packed = nullptr;
  DESAP_TRY(pack_one(context, {weight, out, in, in}, bias, &packed));
  linear.reset(packed);
  return {};
}

struct MemoryFree {
  void operator()(float* memory) const { free_memory(memory); }
};
using Memory = std::unique_ptr<float, MemoryFree>;

using Floats = std::vector<float>;

struct Rounded {
  explicit Rounded(const FoldedLayer& layer) : weight(layer.weight.begin(), layer.weight.end()), bias(layer.bias.begin(), layer.bias.end()) {}
  Floats weight, bias;
};

Matrix padded(Scratch& scratch, int64_t rows, int64_t cols) {
  const int64_t ld = padded_ld(cols);
  return {scratch.floats(rows * ld), rows, cols, ld};
}

void copy_rows(ConstMatrix x, float* y) {
  for (int64_t i = 0; i < x.rows; i++) std::memcpy(y + i * x.cols, x.row(i), static_cast<size_t>(x.cols) * sizeof(float));
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------- head

// Embeddings are kept in the coordinates of RotatedReadOut: A_d U for A_d. Analyses share the way there and back.
struct Rotation {
  LinearPointer text;       // t -> t U
  LinearPointer embedding;  // A_d U -> A_d
};

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
  const int64_t width = config.width, size = config.embedding;
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
  Floats back(read_out.rotation.size());
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

// --------------------------------------------------------------------------------------------------------- analysis

struct Analysis::State {
  HeadConfig config;
  std::shared_ptr<const Rotation> rotation;
  const Kernels* kernels;
  int64_t tokens;
  Hold hold;                     // of `features`, when they are the caller's memory
  std::vector<float> own;        // otherwise: every row (half) or the patch rows (no hold)
  const float* features;         // [P, D]
  Memory results;                // holds the four below, unless they lie in the scratch of a call that keeps nothing
  float* embedding;              // [N, E], A_d U
  float* saliency;               // [P]
  float* global;                 // [E], v_s U
  float* inverse_norms;          // [P], of the features
  AnalyzeTimings timings;

  int64_t patches() const { return tokens - (config.class_token ? 1 : 0); }
  ConstMatrix visual() const {
    const int64_t size = config.embedding;
    return {embedding + (tokens - patches()) * size, patches(), size, size};
  }
};

Analysis::Analysis(std::unique_ptr<State> state) : state_(std::move(state)) {}
Analysis::~Analysis() = default;
int64_t Analysis::tokens() const { return state_->tokens; }
int64_t Analysis::patches() const { return state_->patches(); }
int64_t Analysis::width() const { return state_->config.width; }
const void* Analysis::features() const { return state_->features; }
const AnalyzeTimings& Analysis::timings() const { return state_->timings; }

Status Analysis::read_embedding(float* out) const {
  Context context(*state_->kernels, 1, false);  // the caller's own: any thread may ask
  const int64_t size = state_->config.embedding;
  return linear(context, {state_->embedding, state_->tokens, size, size}, *state_->rotation->embedding,
                {out, state_->tokens, size, size});
}
Status Analysis::read_saliency(float* out) const {
  std::copy_n(state_->saliency, state_->patches(), out);
  return {};
}

Status Head::State::analyze(Context& context, const HiddenStates& hidden, Encoding encoding, const Intermediates& copies,
                            Scratch* results, std::unique_ptr<Analysis::State>* analysis) const {
  const int64_t tokens = hidden.tokens, width = config.width;
  auto result = std::make_unique<Analysis::State>();
  result->config = config;
  result->rotation = rotation;
  result->kernels = context.kernels;
  result->tokens = tokens;
  const int64_t patches = result->patches(), size = config.embedding;
  if (const int64_t floats = tokens * size + patches + size + tokens; results) {
    result->embedding = results->floats(floats);
  } else {
    result->results.reset(static_cast<float*>(allocate_memory(static_cast<size_t>(floats) * sizeof(float))));
    result->embedding = result->results.get();
  }
  if (!result->embedding) return out_of_memory("analyze");
  result->saliency = result->embedding + tokens * size;
  result->global = result->saliency + patches;
  float* const norms = result->global + size;
  result->inverse_norms = norms + (tokens - patches);
  Stopwatch watch;

  const int64_t skipped = (tokens - patches) * width;
  const float* x = static_cast<const float*>(hidden.data);
  if (hidden.half) {
    result->own.resize(static_cast<size_t>(tokens * width));
    DESAP_TRY(convert_half(context, static_cast<const uint16_t*>(hidden.data), tokens * width, result->own.data()));
    x = result->own.data();
    result->features = x + skipped;
  } else if (hidden.hold) {
    result->hold = hidden.hold;
    result->features = x + skipped;
  } else {
    result->own.assign(x + skipped, x + tokens * width);
    result->features = result->own.data();
  }

  // The attention always reads v. The saliency reads q and k: without a class token all of both; with one, the first row
  // of q, and k only where the attention has made it anyway.
  const bool reads_q = encoding == Encoding::qq || encoding == Encoding::qk || !config.class_token;
  const bool reads_k = encoding == Encoding::kk || encoding == Encoding::qk || !config.class_token;
  Scratch scratch(context.arena);
  const Matrix normal = padded(scratch, tokens, width);
  const Matrix q = padded(scratch, reads_q ? tokens : 1, width);
  const Matrix k = padded(scratch, reads_k ? tokens : 0, width);
  const Matrix v = padded(scratch, tokens, width);
  if (scratch.failed()) return out_of_memory("analyze");

  const ConstMatrix input{x, tokens, width, width};
  DESAP_TRY(rename(context.kernels->layer_norm(context, input, nullptr, nullptr, config.epsilon, normal, norms), "hidden"));
  result->timings.normalize = watch.lap();

  DESAP_TRY(linear(context, {normal.data, q.rows, width, normal.ld}, *w_q, q));
  DESAP_TRY(linear(context, {normal.data, k.rows, width, normal.ld}, *w_k, k));
  DESAP_TRY(linear(context, normal, *w_v, v));
  result->timings.project = watch.lap();

  if (reads_k) {
    DESAP_TRY(saliency(context, q, k, config.heads, config.class_token, result->saliency));
  } else {
    DESAP_TRY(context.kernels->folded_saliency(context, normal, q.data, k_weight.get(), config.heads, result->saliency));
  }
  result->timings.saliency = watch.lap();

  const Matrix attended = normal;  // its last readers are behind us
  switch (encoding) {
    case Encoding::qq: DESAP_TRY(attention(context, q, q, v, config.heads, attended)); break;
    case Encoding::kk: DESAP_TRY(attention(context, k, k, v, config.heads, attended)); break;
    case Encoding::vv: DESAP_TRY(attention(context, v, v, v, config.heads, attended)); break;
    case Encoding::qk: DESAP_TRY(attention(context, q, k, v, config.heads, attended)); break;
  }
  if (copies.context) copy_rows(attended, copies.context);
  result->timings.attention = watch.lap();

  const Matrix projected = v;
  if (copies.attention) {
    DESAP_TRY(linear(context, attended, *w_out, projected));
    copy_rows(projected, copies.attention);
  }
  const Matrix embedding{result->embedding, tokens, size, size};
  DESAP_TRY(linear(context, attended, *w_read_out, projected));
  DESAP_TRY(rename(context.kernels->rotated_read_out(context, projected, read_out, config.epsilon, embedding), "hidden"));

  const Matrix global{result->global, 1, size, size};
  if (config.class_token) {
    copy_rows({embedding.data, 1, size, size}, global.data);
  } else {  // the sum has the direction of the mean
    std::fill_n(global.data, size, 0.0f);
    for (int64_t i = 0; i < tokens; i++) {
      for (int64_t e = 0; e < size; e++) global.data[e] += embedding.row(i)[e];
    }
    for (int64_t e = 0; e < size; e++) global.data[e] /= static_cast<float>(tokens);
    DESAP_TRY(unit_rows(context, global, global));
  }
  result->timings.read_out = watch.lap();

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
    results.emplace_back(new Analysis(std::move(state)));
  }
  std::move(results.begin(), results.end(), analyses);
  return {};
} catch (const std::bad_alloc&) {
  return out_of_memory("analyze");
}

// ------------------------------------------------------------------------------------------------------------ prune

Status Analysis::prune(Context& context, const PruneRequest& request, const PruneOutput& output, PruneTimings* timings) const {
  const int64_t patches = state_->patches(), words = request.text.rows, size = state_->config.embedding;
  const int64_t keep = request.keep, task_keep = request.task_keep;
  const ConstMatrix features =
      request.features.data ? request.features : ConstMatrix{state_->features, patches, state_->config.width, state_->config.width};
  const auto wanted = [&](const float* matrix) { return matrix ? patches * words : 0; };
  Stopwatch watch;

  // Everything is computed in scratch first: a stage may still find an input at fault when others have finished.
  Scratch scratch(context.arena);
  const Matrix unit = padded(scratch, words + 1, size);  // the text's unit rows, and the query's
  const Matrix rotated = padded(scratch, words + 1, size);
  float* task = scratch.floats(patches);
  float* similarity = scratch.floats(wanted(output.matrices.similarity));
  float* visual_alignment = scratch.floats(wanted(output.matrices.visual_alignment));
  float* text_alignment = scratch.floats(wanted(output.matrices.text_alignment));
  uint8_t* taken = scratch.bytes(patches);
  int32_t* by_task = scratch.ints(task_keep);
  int32_t* by_saliency = scratch.ints(keep - task_keep);
  int32_t* indices = scratch.ints(keep);
  uint8_t* source = scratch.bytes(keep);
  if (scratch.failed()) return out_of_memory("prune");

  const Matrix query{unit.row(words), 1, size, size};
  DESAP_TRY(rename(unit_rows(context, request.text, {unit.data, words, size, unit.ld}), "text"));
  if (request.query) {
    DESAP_TRY(rename(unit_rows(context, {request.query, 1, size, size}, query), "query"));
  } else {
    copy_rows({unit.row(request.end_of_text), 1, size, size}, query.data);
  }
  DESAP_TRY(linear(context, unit, *state_->rotation->text, rotated));
  const ConstMatrix text{rotated.data, words, size, rotated.ld};
  DESAP_TRY(align(context, state_->visual(), text, rotated.row(words), state_->global, request.alignment, request.lambda,
                  task,
                  {output.matrices.similarity ? similarity : nullptr,
                   output.matrices.visual_alignment ? visual_alignment : nullptr,
                   output.matrices.text_alignment ? text_alignment : nullptr}));
  PruneTimings times;
  times.align = watch.lap();

  const float* saliency = request.saliency ? request.saliency : state_->saliency;
  const Status ranked = top_k(context, task, nullptr, patches, task_keep, by_task);
  if (ranked.code == Code::not_finite) return {Code::internal, "task", ranked.where};
  DESAP_TRY(ranked);
  std::memset(taken, 0, static_cast<size_t>(patches));
  for (int64_t i = 0; i < task_keep; i++) taken[by_task[i]] = 1;
  DESAP_TRY(rename(top_k(context, saliency, taken, patches, keep - task_keep, by_saliency), "saliency"));
  for (int64_t i = 0, t = 0, s = 0; i < keep; i++) {
    const bool from_task = s == keep - task_keep || (t < task_keep && by_task[t] < by_saliency[s]);
    indices[i] = from_task ? by_task[t++] : by_saliency[s++];
    source[i] = from_task ? 0 : 1;
  }
  times.top_k = watch.lap();

  if (request.merge) {
    const Matrix tokens{output.tokens, keep, features.cols, features.cols};
    const float* norms = request.features.data ? nullptr : state_->inverse_norms;
    DESAP_TRY(context.kernels->merge(context, features, norms, indices, keep, tokens, output.assignment, output.counts));
  } else {
    for (int64_t i = 0; i < patches; i++) output.assignment[i] = -1;
    for (int64_t i = 0; i < keep; i++) {
      copy_rows({features.row(indices[i]), 1, features.cols, features.cols}, output.tokens + i * features.cols);
      output.assignment[indices[i]] = static_cast<int32_t>(i);
      output.counts[i] = 1;
    }
  }
  times.merge = watch.lap();

  const auto deliver = [](const auto* from, int64_t count, auto* to) {
    if (to) std::memcpy(to, from, static_cast<size_t>(count) * sizeof *from);
  };
  deliver(indices, keep, output.indices);
  deliver(source, keep, output.source);
  deliver(task, patches, output.task);
  deliver(saliency, patches, output.saliency);
  deliver(similarity, patches * words, output.matrices.similarity);
  if (request.alignment != Alignment::mean) {
    deliver(visual_alignment, patches * words, output.matrices.visual_alignment);
    deliver(text_alignment, patches * words, output.matrices.text_alignment);
  }
  if (timings) *timings = times;
  return {};
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
