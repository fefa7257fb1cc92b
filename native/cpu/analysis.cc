// An analysis: made from parts, read, and asked. The stages of a pruning are align, select and merge.
#include "analysis.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <new>
#include <utility>

namespace desap {

Analysis::Analysis(std::unique_ptr<State> state) : state_(std::move(state)) {}
Analysis::~Analysis() = default;
int64_t Analysis::rows() const { return state_->rows; }
int64_t Analysis::patches() const { return state_->patches; }
int64_t Analysis::width() const { return state_->width; }
int64_t Analysis::projection_dim() const { return state_->projection_dim; }
const void* Analysis::features() const { return state_->features; }
const AnalyzeTimings& Analysis::timings() const { return state_->timings; }

Status Analysis::read_patch_embeddings(float* out) const { return state_->read(state_->patch_embeddings(), state_->patches, out); }
Status Analysis::read_global(float* out) const { return state_->read(state_->global, 1, out); }
Status Analysis::read_saliency(float* out) const {
  std::copy_n(state_->saliency, state_->patches, out);
  return {};
}

// ------------------------------------------------------------------------------------------------------------- make

Status Analysis::State::allocate(Scratch* scratch) {
  const int64_t floats = rows * projection_dim + patches + projection_dim + rows;
  if (!scratch) results.reset(static_cast<float*>(allocate_memory(static_cast<size_t>(floats) * sizeof(float))));
  embeddings = scratch ? scratch->floats(floats) : results.get();
  if (!embeddings) return out_of_memory("analysis");
  saliency = embeddings + rows * projection_dim;
  global = saliency + patches;
  norms = global + projection_dim;
  return {};
}

Status Analysis::State::keep_features(Context& context, const void* data, bool half, const Hold& given, const float** all) {
  const int64_t size = rows * width, skipped = (rows - patches) * width;
  if (half) {
    own.resize(static_cast<size_t>(size));
    DESAP_TRY(convert_half(context, static_cast<const uint16_t*>(data), size, own.data()));
    *all = own.data();
    features = *all + skipped;
    return {};
  }
  *all = static_cast<const float*>(data);
  hold = given;
  if (!hold) own.assign(*all + skipped, *all + size);
  features = hold ? *all + skipped : own.data();
  return {};
}

Status Analysis::State::average(Context& context) {
  std::fill_n(global, projection_dim, 0.0f);
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t e = 0; e < projection_dim; e++) global[e] += embeddings[i * projection_dim + e];
  }
  for (int64_t e = 0; e < projection_dim; e++) global[e] /= static_cast<float>(rows);
  const Matrix row{global, 1, projection_dim, projection_dim};
  return unit_rows(context, row, row);
}

Status Analysis::State::read(const float* from, int64_t count, float* out) const {
  const ConstMatrix kept{from, count, projection_dim, projection_dim};
  if (!rotation) {
    copy_rows(kept, out);
    return {};
  }
  Context context(*kernels, 1, false);  // the caller's own: any thread may ask
  return linear(context, kept, *rotation->embedding, {out, count, projection_dim, projection_dim});
}

Status Analysis::from(Context& context, const AnalysisParts& parts, std::shared_ptr<Analysis>* analysis) try {
  auto state = std::make_unique<State>();
  state->kernels = context.kernels;
  state->rows = state->patches = parts.patch_embeddings.rows;
  state->width = parts.width;
  state->projection_dim = parts.patch_embeddings.cols;
  state->timings = {};
  const int64_t patches = state->patches, size = state->projection_dim;
  DESAP_TRY(state->allocate(nullptr));
  DESAP_TRY(rename(unit_rows(context, parts.patch_embeddings, {state->embeddings, patches, size, size}), "patchEmbeddings"));
  if (parts.global) {
    DESAP_TRY(rename(unit_rows(context, {parts.global, 1, size, size}, {state->global, 1, size, size}), "global"));
  } else {
    DESAP_TRY(state->average(context));
  }
  for (int64_t i = 0; i < patches; i++) {
    if (!std::isfinite(parts.saliency[i])) return {Code::not_finite, "saliency", i};
  }
  std::copy_n(parts.saliency, patches, state->saliency);
  const float* features = nullptr;
  DESAP_TRY(state->keep_features(context, parts.features, parts.half, parts.hold, &features));
  DESAP_TRY(rename(context.kernels->inverse_norms(context, {features, patches, parts.width, parts.width}, state->norms), "features"));
  analysis->reset(new Analysis(std::move(state)));
  return {};
} catch (const std::bad_alloc&) {
  return out_of_memory("analysis");
}

// ------------------------------------------------------------------------------------------------------------ prune

namespace {

// The text's unit rows, and below them the end-of-text row's.
Status unit_text(Context& context, const PruneRequest& request, Matrix unit) {
  const int64_t text_tokens = request.text.rows, size = unit.cols;
  const Matrix last{unit.row(text_tokens), 1, size, size};
  DESAP_TRY(rename(unit_rows(context, request.text, {unit.data, text_tokens, size, unit.ld}), "text"));
  if (request.end_of_text) return rename(unit_rows(context, {request.end_of_text, 1, size, size}, last), "endOfText");
  copy_rows({unit.row(request.end_of_text_row), 1, size, size}, last.data);
  return {};
}

bool all_finite(const float* x, int64_t size) {
  bool finite = true;  // without a way out of the loop, which the compiler then makes a vector's
  for (int64_t i = 0; i < size; i++) finite &= std::fabs(x[i]) <= FLT_MAX;
  return finite;
}

// The kept rows as they are. A dropped patch belongs to no token.
Status keep_rows(ConstMatrix features, const int32_t* kept, int64_t keep, const PruneOutput& output) {
  for (int64_t i = 0; i < keep; i++) {
    if (!all_finite(features.row(kept[i]), features.cols)) return {Code::not_finite, "features", kept[i]};
  }
  std::fill_n(output.assignment, features.rows, -1);
  std::fill_n(output.counts, keep, 1);
  for (int64_t i = 0; i < keep; i++) {
    copy_rows({features.row(kept[i]), 1, features.cols, features.cols}, output.tokens + i * features.cols);
    output.assignment[kept[i]] = static_cast<int32_t>(i);
  }
  return {};
}

template <class T>
void deliver(const T* from, int64_t count, T* to) {
  if (from && to) std::memcpy(to, from, static_cast<size_t>(count) * sizeof *from);
}

}  // namespace

Status Analysis::State::align(Context& context, Scratch& scratch, const PruneRequest& request, const AlignmentMatrices& wanted,
                              Aligned* aligned) const {
  const int64_t text_tokens = request.text.rows, size = projection_dim;
  const auto room = [&](const float* matrix) { return matrix ? scratch.floats(patches * text_tokens) : nullptr; };
  Matrix unit = padded(scratch, text_tokens + 1, size);
  const Matrix rotated = rotation ? padded(scratch, text_tokens + 1, size) : unit;
  aligned->task = scratch.floats(patches);
  aligned->matrices = {room(wanted.similarity), room(wanted.visual_alignment), room(wanted.text_alignment)};
  if (scratch.failed()) return out_of_memory("prune");
  DESAP_TRY(unit_text(context, request, unit));
  if (rotation) DESAP_TRY(linear(context, unit, *rotation->text, rotated));
  return desap::align(context, {patch_embeddings(), patches, size, size}, {rotated.data, text_tokens, size, rotated.ld},
                      rotated.row(text_tokens), global, request.alignment, request.lambda, aligned->task, aligned->matrices);
}

Status Analysis::State::select(Context& context, Scratch& scratch, const PruneRequest& request, const float* computed,
                               Selected* selected) const {
  *selected = {request.task ? request.task : computed, request.saliency ? request.saliency : saliency, scratch.ints(request.keep),
               scratch.bytes(request.keep)};
  if (scratch.failed()) return out_of_memory("prune");
  const bool diverse = request.complement == Complement::diversity;
  Status status = desap::select(context, selected->task, selected->saliency, patches, diverse ? request.task_keep : request.keep,
                                request.task_keep, selected->indices, selected->source);
  const bool our_own = !request.task && status.code == Code::not_finite && !std::strcmp(status.what, "task");
  if (our_own) status.code = Code::internal;
  DESAP_TRY(status);
  return diverse ? complete(context, request, *selected) : Status{};
}

Status Analysis::State::complete(Context& context, const PruneRequest& request, const Selected& selected) const {
  const bool given = request.distances.data != nullptr, of_mine = !given && !request.features.data;
  const ConstMatrix apart = given ? request.distances : merged(request);
  const int64_t seeds = request.task_keep, count = request.keep - seeds;
  int32_t* const farthest = selected.indices + seeds;
  Scratch scratch(context.arena);
  int32_t* both = scratch.ints(request.keep);
  float* own_norms = of_mine ? nullptr : scratch.floats(apart.rows);
  if (scratch.failed()) return out_of_memory("prune");
  if (own_norms) DESAP_TRY(rename(context.kernels->inverse_norms(context, apart, own_norms), given ? "distances" : "features"));
  const float* inverses = own_norms ? own_norms : inverse_norms();
  if (seeds == 0) {
    DESAP_TRY(most_distant(context, apart, inverses, farthest));
    DESAP_TRY(farthest_points(context, apart, inverses, farthest, 1, count - 1, farthest + 1));
  } else {
    DESAP_TRY(farthest_points(context, apart, inverses, selected.indices, seeds, count, farthest));
  }
  std::sort(farthest, farthest + count);
  std::merge(selected.indices, farthest, farthest, farthest + count, both);
  for (int64_t k = 0, task = 0; k < request.keep; k++) {
    const bool from_task = task < seeds && both[k] == selected.indices[task];
    selected.source[k] = from_task ? 0 : 1;
    task += from_task;
  }
  std::copy_n(both, request.keep, selected.indices);
  return {};
}

Status Analysis::State::merge(Context& context, const PruneRequest& request, const int32_t* kept, const PruneOutput& output) const {
  const bool given = request.features.data != nullptr;
  const ConstMatrix together = merged(request);
  if (!request.merge) return keep_rows(together, kept, request.keep, output);
  return context.kernels->merge(context, together, given ? nullptr : inverse_norms(), kept, request.keep,
                                {output.tokens, request.keep, together.cols, together.cols}, output.assignment, output.counts);
}

Status Analysis::prune(Context& context, const PruneRequest& request, const PruneOutput& output, PruneTimings* timings) const {
  Scratch scratch(context.arena);
  Stopwatch watch;
  PruneTimings times{};
  Aligned aligned{};
  if (request.text.data) {
    DESAP_TRY(state_->align(context, scratch, request, output.matrices, &aligned));
    times.align = watch.lap();
  }
  Selected selected;
  DESAP_TRY(state_->select(context, scratch, request, aligned.task, &selected));
  times.select = watch.lap();
  DESAP_TRY(state_->merge(context, request, selected.indices, output));
  times.merge = watch.lap();

  const int64_t patches = state_->patches, pairs = patches * request.text.rows;
  deliver(selected.indices, request.keep, output.indices);
  deliver(selected.source, request.keep, output.source);
  deliver(selected.task, patches, output.task);
  deliver(selected.saliency, patches, output.saliency);
  deliver(aligned.matrices.similarity, pairs, output.matrices.similarity);
  if (request.alignment != Alignment::mean) {
    deliver(aligned.matrices.visual_alignment, pairs, output.matrices.visual_alignment);
    deliver(aligned.matrices.text_alignment, pairs, output.matrices.text_alignment);
  }
  if (timings) *timings = times;
  return {};
}

}  // namespace desap
