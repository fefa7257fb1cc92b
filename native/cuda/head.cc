// The head and its analyses on the GPU: weights, runs (head_run.h), and what stays on the GPU between two of them.
#include "../head.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>
#include <vector>

#include "head_run.h"
#include "kernel_run.h"

namespace desap {

using cuda::Arrays;
using cuda::DeviceBuffer;
using cuda::Engine;
using cuda::GivenImage;
using cuda::HeadRun;
using cuda::KernelRun;
using cuda::StreamLock;

namespace {

// Numbers of the images that one graph can treat, in groups, each in the order of the run.
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

// Where there is one image, an error does not say which.
Status alone(Status status) {
  status.image = -1;
  return status;
}

// Runs group by group. An image at fault does not end the call before the groups that may hold an earlier one: the first of all
// images at fault is told.
template <class Run>
Status run_groups(const std::vector<std::vector<int64_t>>& groups, int64_t count, const Run& run) {
  Status first;
  for (const std::vector<int64_t>& group : groups) {
    if (!first.good() && group[0] > first.image) continue;
    Status status = run(group);
    if (status.good()) continue;
    if (status.image < 0) return status;
    status.image = group[static_cast<size_t>(status.image)];
    if (first.good() || status.image < first.image) first = status;
  }
  return count == 1 ? alone(first) : first;
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------- head

struct Head::State : cuda::GpuHead {};

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
  StreamLock stream(*context.engine);
  DESAP_TRY(stream.take());
  DESAP_TRY(state->weights.pack(*stream, context.engine->precision, config, weights));
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
  int64_t rows = 0;
  const void* features = nullptr;  // in the caller's memory, or null
  AnalyzeTimings timings{};

  Status read(const char* array, int64_t count, float* out) const {
    StreamLock stream(*engine);
    DESAP_TRY(stream.take());
    return read(*stream, array, count, out);
  }
  static Status read(cuda::Stream& stream, const char* array, int64_t count, float* out) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(float);
    stream.queue.note(cudaMemcpyAsync(out, array, bytes, cudaMemcpyDeviceToHost, stream.queue.stream));
    return stream.finish();
  }
};

Analysis::Analysis(std::unique_ptr<State> state) : state_(std::move(state)) {}
Analysis::~Analysis() = default;
int64_t Analysis::rows() const { return state_->rows; }
int64_t Analysis::patches() const { return state_->rows - (state_->config.class_token ? 1 : 0); }
int64_t Analysis::width() const { return state_->config.width; }
int64_t Analysis::projection_dim() const { return state_->config.projection_dim; }
const void* Analysis::features() const { return state_->features; }
const AnalyzeTimings& Analysis::timings() const { return state_->timings; }

Status Analysis::read_patch_embeddings(float* out) const {
  const int64_t size = projection_dim(), skipped = (rows() - patches()) * size * static_cast<int64_t>(sizeof(float));
  return state_->read(state_->arrays.embeddings + skipped, patches() * size, out);
}
Status Analysis::read_global(float* out) const { return state_->read(state_->arrays.global, projection_dim(), out); }
Status Analysis::read_saliency(float* out) const { return state_->read(state_->arrays.saliency, patches(), out); }

Status Analysis::from(Context& context, const AnalysisParts& parts, std::shared_ptr<Analysis>* analysis) try {
  auto state = std::make_unique<State>();  // outlives the run, which writes its memory
  const auto fill = [&](KernelRun& run) -> Status {
    const ConstMatrix& embeddings = parts.patch_embeddings;
    const int64_t patches = embeddings.rows, size = embeddings.cols, elements = patches * parts.width;
    if (size > cuda::widest_row) return {Code::unsupported, "patchEmbeddings of more than 16384 columns"};
    state->config.width = parts.width;
    state->config.heads = 1;
    state->config.projection_dim = size;
    state->engine = context.engine;
    state->rows = patches;
    HeadRun plan(run.stream(), run.precision(), state->config, nullptr);
    DESAP_TRY(plan.add(patches, {}));
    state->block = std::make_shared<DeviceBuffer>();
    const auto& gpu = run.stream().gpu;
    DESAP_TRY(gpu->status(state->block->allocate(gpu, plan.analysis_bytes()), "device memory"));
    const Arrays& arrays = state->arrays = plan.analysis_of(state->block->data(), 0);
    const auto floats = [](char* array) { return reinterpret_cast<float*>(array); };

    const Matrix rows{floats(arrays.embeddings), patches, size, size}, global{floats(arrays.global), 1, size, size};
    int *rows_fault = run.fault(), *global_fault = run.fault(), *features_fault = run.fault();
    run.send(embeddings, rows);
    cuda::unit_rows(run.queue(), rows, rows, rows_fault);
    if (parts.global) {
      run.send(parts.global, size, global.data);
      cuda::unit_rows(run.queue(), global, global, global_fault);
    } else {
      const cuda::OneImage image(run, patches, false, 0, 0, 0);
      cuda::FoldedReadOut mean{};
      mean.images = image.record;
      mean.extent = image.extent;
      mean.projection_dim = static_cast<int>(size);
      mean.scratch = run.array<float>(cuda::folded_read_out_scratch(image.extent, mean.projection_dim, false));
      mean.embeddings = rows.data;
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

// A head and its analyses live on the GPU, and at the precision, of the context that made the head.
Status Head::analyze(Context&, const HiddenStates* images, int64_t count, Encoding encoding, const Intermediates* copies,
                     std::shared_ptr<Analysis>* analyses) const try {
  const HeadConfig& config = state_->config;
  std::vector<std::shared_ptr<Analysis>> results(static_cast<size_t>(count));
  StreamLock stream(*state_->engine);
  DESAP_TRY(stream.take());
  const auto given = [&](int64_t i) { return GivenImage{images + i}; };
  const auto same = [&](int64_t a, int64_t b) { return HeadRun::same_kind(given(a), given(b)); };
  const auto analyze_group = [&](const std::vector<int64_t>& group) -> Status {
    HeadRun run(*stream, state_->engine->precision, config, state_.get());
    std::vector<Intermediates> wanted;
    for (int64_t i : group) {
      wanted.push_back(copies ? copies[i] : Intermediates{});
      DESAP_TRY(run.add(images[i].rows, given(i)));
    }
    const auto asked = [](const Intermediates& copy) { return copy.context || copy.attention; };
    const bool any = std::any_of(wanted.begin(), wanted.end(), asked);
    run.analyze(encoding, any);
    const auto block = std::make_shared<DeviceBuffer>();
    DESAP_TRY(stream->gpu->status(block->allocate(stream->gpu, run.analysis_bytes()), "device memory"));
    const Arrays kept = run.analysis_of(block->data(), 0);
    DESAP_TRY(run.execute(&kept));
    if (any) DESAP_TRY(run.read_intermediates(wanted));
    for (size_t i = 0; i < group.size(); i++) {
      const HiddenStates& hidden = images[group[i]];
      const int64_t number = static_cast<int64_t>(i);
      const int64_t skipped = (config.class_token ? config.width : 0) * (hidden.half ? 2 : 4);
      auto state = std::make_unique<Analysis::State>();
      state->config = config;
      state->engine = state_->engine;
      state->block = block;
      state->arrays = run.analysis_of(block->data(), number);
      state->rows = hidden.rows;
      state->features = hidden.hold && run.in_place(number) ? static_cast<const char*>(hidden.data) + skipped : nullptr;
      state->timings = run.analyze_timings(number);
      results[static_cast<size_t>(group[i])].reset(new Analysis(std::move(state)));
    }
    return {};
  };
  DESAP_TRY(run_groups(groups_of(count, same), count, analyze_group));
  std::move(results.begin(), results.end(), analyses);
  return {};
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "analyze"};
}

// ------------------------------------------------------------------------------------------------------------ prune

Status Head::prune(Context&, const HiddenStates* images, int64_t count, Encoding encoding,
                   const PruneRequest* requests, const PruneOutput* outputs, AnalyzeTimings* analyze_timings,
                   PruneTimings* prune_timings) const try {
  StreamLock stream(*state_->engine);
  DESAP_TRY(stream.take());
  const auto given = [&](int64_t i) { return GivenImage{images + i, requests + i, outputs + i}; };
  const auto same = [&](int64_t a, int64_t b) { return HeadRun::same_kind(given(a), given(b)); };
  const auto prune_group = [&](const std::vector<int64_t>& group) -> Status {
    HeadRun run(*stream, state_->engine->precision, state_->config, state_.get());
    run.analyze(encoding, false);
    for (int64_t i : group) DESAP_TRY(run.add(images[i].rows, given(i)));
    DESAP_TRY(run.execute(nullptr));
    for (size_t i = 0; i < group.size(); i++) {
      const int64_t number = static_cast<int64_t>(i), original = group[i];
      run.deliver(number);
      if (analyze_timings) analyze_timings[original] = run.analyze_timings(number);
      if (prune_timings) prune_timings[original] = run.prune_timings(number);
    }
    return {};
  };
  return run_groups(groups_of(count, same), count, prune_group);
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "prune"};
}

Status Analysis::prune(Context&, const PruneRequest& request, const PruneOutput& output,
                       PruneTimings* timings) const try {
  StreamLock stream(*state_->engine);
  DESAP_TRY(stream.take());
  HeadRun run(*stream, state_->engine->precision, state_->config, nullptr);
  DESAP_TRY(run.add(state_->rows, {nullptr, &request, &output}));
  DESAP_TRY(alone(run.execute(&state_->arrays)));
  if (output.saliency && !request.saliency)
    DESAP_TRY(State::read(*stream, state_->arrays.saliency, patches(), output.saliency));
  run.deliver(0);
  if (timings) *timings = run.prune_timings(0);
  return {};
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "prune"};
}

}  // namespace desap
