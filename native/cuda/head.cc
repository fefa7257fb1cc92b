// The head and its analyses on the card: weights, calls (call.h), and what stays on the card between two of them.
#include "../head.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>
#include <vector>

#include "call.h"
#include "kernel_run.h"

namespace desap {

using cuda::Arrays;
using cuda::Call;
using cuda::DeviceBuffer;
using cuda::Engine;
using cuda::KernelRun;
using cuda::LaneLock;

namespace {

// Numbers of the call's images that one graph can treat, in groups, each in the order of the call.
template <class Same>
std::vector<std::vector<int64_t>> groups_of(int64_t count, const Same& same) {
  std::vector<std::vector<int64_t>> groups;
  for (int64_t i = 0; i < count; i++) {
    const auto fits = [&](const std::vector<int64_t>& group) { return same(group[0], i); };
    const auto group = std::find_if(groups.begin(), groups.end(), fits);
    if (group == groups.end()) {
      groups.push_back({i});
    } else {
      group->push_back(i);
    }
  }
  return groups;
}

// A status that speaks of a group's image speaks of the caller's.
Status of_image(Status status, const std::vector<int64_t>& group, int64_t count) {
  if (status.image >= 0) status.image = count > 1 ? group[static_cast<size_t>(status.image)] : -1;
  return status;
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------- head

struct Head::State : cuda::CardHead {};

Head::Head(std::unique_ptr<State> state) : state_(std::move(state)) {}
Head::~Head() = default;
const HeadConfig& Head::config() const { return state_->config; }

Status Head::create(Context& context, const HeadConfig& config, const HeadWeights& weights,
                    std::shared_ptr<Head>* head) try {
  static std::atomic<int64_t> heads{0};
  auto state = std::make_unique<State>();
  state->config = config;
  state->engine = context.engine;
  state->serial = heads++;
  LaneLock lane(*context.engine);
  DESAP_TRY(lane.take());
  DESAP_TRY(state->weights.pack(*lane, context.engine->precision, config, weights));
  head->reset(new Head(std::move(state)));
  return {};
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "weight"};
}

// --------------------------------------------------------------------------------------------------------- analysis

struct Analysis::State {
  HeadConfig config{};
  std::shared_ptr<Engine> engine;
  std::shared_ptr<DeviceBuffer> block;  // of all images that were analysed together
  Arrays arrays{};
  int64_t tokens = 0;
  const void* features = nullptr;  // in the caller's memory, or null
  AnalyzeTimings timings{};

  Status read(const char* array, int64_t count, float* out) const {
    LaneLock lane(*engine);
    DESAP_TRY(lane.take());
    return read(*lane, array, count, out);
  }
  static Status read(cuda::Lane& lane, const char* array, int64_t count, float* out) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(float);
    lane.queue.note(cudaMemcpyAsync(out, array, bytes, cudaMemcpyDeviceToHost, lane.queue.stream));
    return lane.finish();
  }
};

Analysis::Analysis(std::unique_ptr<State> state) : state_(std::move(state)) {}
Analysis::~Analysis() = default;
int64_t Analysis::rows() const { return state_->tokens; }
int64_t Analysis::patches() const { return state_->tokens - (state_->config.class_token ? 1 : 0); }
int64_t Analysis::width() const { return state_->config.width; }
int64_t Analysis::projection_dim() const { return state_->config.embedding; }
const void* Analysis::features() const { return state_->features; }
const AnalyzeTimings& Analysis::timings() const { return state_->timings; }

Status Analysis::read_patch_embeddings(float* out) const {
  const int64_t size = projection_dim(), skipped = rows() - patches();
  return state_->read(state_->arrays.embedding + skipped * size * static_cast<int64_t>(sizeof(float)), patches() * size, out);
}
Status Analysis::read_global(float* out) const { return state_->read(state_->arrays.global, projection_dim(), out); }
Status Analysis::read_saliency(float* out) const { return state_->read(state_->arrays.saliency, patches(), out); }

Status Analysis::from(Context& context, const AnalysisParts& parts, std::shared_ptr<Analysis>* analysis) try {
  auto state = std::make_unique<State>();  // outlives the run, which writes its memory
  const auto fill = [&](KernelRun& run) -> Status {
    const ConstMatrix& embeddings = parts.patch_embeddings;
    const int64_t patches = embeddings.rows, size = embeddings.cols, elements = patches * parts.width;
    state->config.width = parts.width;
    state->config.heads = 1;
    state->config.embedding = size;
    state->engine = context.engine;
    state->tokens = patches;
    Call call(run.lane(), run.precision(), state->config, nullptr);
    DESAP_TRY(call.add(patches, nullptr, nullptr));
    state->block = std::make_shared<DeviceBuffer>();
    const auto& card = run.lane().card;
    DESAP_TRY(card->status(state->block->allocate(card, call.analysis_bytes()), "device memory"));
    const Arrays& arrays = state->arrays = call.analysis_of(state->block->data(), 0);
    const auto floats = [](char* array) { return reinterpret_cast<float*>(array); };

    const Matrix rows{floats(arrays.embedding), patches, size, size}, global{floats(arrays.global), 1, size, size};
    int *rows_fault = run.fault(), *global_fault = run.fault(), *features_fault = run.fault();
    run.send(embeddings, rows);
    cuda::unit_rows(run.queue(), rows, rows, rows_fault);
    if (parts.global) {
      run.send(parts.global, size, global.data);
      cuda::unit_rows(run.queue(), global, global, global_fault);
    } else {
      const cuda::OneImage image(run, patches, false, 0, 0, 0);
      cuda::Embed mean{};
      mean.images = image.record;
      mean.extent = image.extent;
      mean.embedding = static_cast<int>(size);
      mean.scratch = run.array<float>(cuda::embed_scratch(image.extent, mean.embedding, false));
      mean.embedding_rows = rows.data;
      mean.global = global.data;
      cuda::unit_mean(run.queue(), mean);
    }
    run.send(parts.saliency, patches, floats(arrays.saliency));
    float* features = floats(arrays.features);
    if (parts.half) {
      cuda::convert_half(run.queue(), run.upload(static_cast<const uint16_t*>(parts.features), elements), elements, features);
    } else {
      run.send(static_cast<const float*>(parts.features), elements, features);
    }
    cuda::inverse_norms(run.queue(), {features, patches, parts.width, parts.width}, floats(arrays.inverse_norm), features_fault);

    DESAP_TRY(run.check(rows_fault, "patchEmbeddings"));
    DESAP_TRY(run.check(global_fault, "global"));
    for (int64_t i = 0; i < patches; i++) {
      if (!std::isfinite(parts.saliency[i])) return {Code::not_finite, "saliency", i};
    }
    DESAP_TRY(run.check(features_fault, "features"));
    const int64_t bytes = elements * (parts.half ? 2 : 4);
    if (parts.hold && cuda::mapped_address(parts.features, bytes)) state->features = parts.features;
    return {};
  };
  DESAP_TRY(cuda::with_run(context, "analysis", fill));
  analysis->reset(new Analysis(std::move(state)));
  return {};
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "analysis"};
}

// A head and its analyses live on the card, and at the precision, of the context that made the head.
Status Head::analyze(Context&, const HiddenStates* images, int64_t count, Encoding encoding, const Intermediates* copies,
                     std::shared_ptr<Analysis>* analyses) const try {
  const HeadConfig& config = state_->config;
  std::vector<std::shared_ptr<Analysis>> results(static_cast<size_t>(count));
  LaneLock lane(*state_->engine);
  DESAP_TRY(lane.take());
  for (const auto& group : groups_of(count, [&](int64_t a, int64_t b) { return images[a].half == images[b].half; })) {
    Call call(*lane, state_->engine->precision, config, state_.get());
    std::vector<Intermediates> wanted;
    for (int64_t i : group) {
      wanted.push_back(copies ? copies[i] : Intermediates{});
      DESAP_TRY(call.add(images[i].tokens, images + i, nullptr));
    }
    const auto asked = [](const Intermediates& copy) { return copy.context || copy.attention; };
    const bool any = std::any_of(wanted.begin(), wanted.end(), asked);
    call.analyze(encoding, images[group[0]].half, any);
    const auto block = std::make_shared<DeviceBuffer>();
    DESAP_TRY(lane->card->status(block->allocate(lane->card, call.analysis_bytes()), "device memory"));
    const Arrays kept = call.analysis_of(block->data(), 0);
    DESAP_TRY(of_image(call.run(&kept), group, count));
    if (any) DESAP_TRY(call.read_intermediates(wanted));
    for (size_t i = 0; i < group.size(); i++) {
      const HiddenStates& hidden = images[group[i]];
      const int64_t number = static_cast<int64_t>(i);
      const int64_t skipped = (config.class_token ? config.width : 0) * (hidden.half ? 2 : 4);
      auto state = std::make_unique<Analysis::State>();
      state->config = config;
      state->engine = state_->engine;
      state->block = block;
      state->arrays = call.analysis_of(block->data(), number);
      state->tokens = hidden.tokens;
      state->features = hidden.hold && call.in_place(number) ? static_cast<const char*>(hidden.data) + skipped : nullptr;
      state->timings = call.analyze_timings(number);
      results[static_cast<size_t>(group[i])].reset(new Analysis(std::move(state)));
    }
  }
  std::move(results.begin(), results.end(), analyses);
  return {};
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "analyze"};
}

// ------------------------------------------------------------------------------------------------------------ prune

Status Head::prune(Context&, const HiddenStates* images, int64_t count, Encoding encoding,
                   const PruneRequest* requests, const PruneOutput* outputs, AnalyzeTimings* analyze_timings,
                   PruneTimings* prune_timings) const try {
  LaneLock lane(*state_->engine);
  DESAP_TRY(lane.take());
  const auto same = [&](int64_t a, int64_t b) {
    return images[a].half == images[b].half && Call::same_kind(requests[a], outputs[a], requests[b], outputs[b]);
  };
  for (const auto& group : groups_of(count, same)) {
    Call call(*lane, state_->engine->precision, state_->config, state_.get());
    call.analyze(encoding, images[group[0]].half, false);
    call.prune(requests[group[0]], outputs[group[0]]);
    for (int64_t i : group) DESAP_TRY(call.add(images[i].tokens, images + i, requests + i));
    DESAP_TRY(of_image(call.run(nullptr), group, count));
    for (size_t i = 0; i < group.size(); i++) {
      const int64_t number = static_cast<int64_t>(i), original = group[i];
      call.deliver(number, requests[original], outputs[original]);
      if (analyze_timings) analyze_timings[original] = call.analyze_timings(number);
      if (prune_timings) prune_timings[original] = call.prune_timings(number);
    }
  }
  return {};
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "prune"};
}

Status Analysis::prune(Context&, const PruneRequest& request, const PruneOutput& output,
                       PruneTimings* timings) const try {
  LaneLock lane(*state_->engine);
  DESAP_TRY(lane.take());
  Call call(*lane, state_->engine->precision, state_->config, nullptr);
  call.prune(request, output);
  DESAP_TRY(call.add(state_->tokens, nullptr, &request));
  DESAP_TRY(of_image(call.run(&state_->arrays), {0}, 1));
  if (output.saliency && !request.saliency)
    DESAP_TRY(State::read(*lane, state_->arrays.saliency, patches(), output.saliency));
  call.deliver(0, request, output);
  if (timings) *timings = call.prune_timings(0);
  return {};
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "prune"};
}

}  // namespace desap
