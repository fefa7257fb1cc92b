#include "head_run.h"

#include <algorithm>
#include <climits>
#include <cstring>

namespace desap::cuda {
namespace {

constexpr int64_t most_tokens = 65536, most_text_tokens = 4096;
constexpr int64_t most_images = 65535;  // a grid's second and third extent
constexpr int64_t text_step = 16;  // questions of nearly the same length share a graph
constexpr int squares_slice = 64;
constexpr int no_fault = INT_MAX;

int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// A pointer of the header, read when the kernel runs.
template <class T>
Relocatable<T> slot(char* const* pointer) {
  return {pointer, 0};
}

}  // namespace

// ------------------------------------------------------------------------------------------------------ what to do

HeadRun::HeadRun(Stream& stream, Precision precision, const HeadConfig& config, const GpuHead* head)
    : stream_(stream), precision_(precision), config_(config), head_(head) {}

void HeadRun::analyze(Encoding encoding, bool half, bool intermediates) {
  encoding_ = encoding;
  half_ = half;
  intermediates_ = intermediates;
}

void HeadRun::prune(const PruneRequest& request, const PruneOutput& output) {
  prune_ = true;
  align_ = request.text.data != nullptr;
  merge_ = request.merge;
  own_map_ = request.saliency != nullptr;
  own_features_ = request.features.data != nullptr;
  wants_map_ = head_ && output.saliency && !own_map_;
  alignment_ = request.alignment;
  lambda_ = request.lambda;
  feature_width_ = own_features_ ? request.features.cols : config_.width;
  const bool weights = align_ && request.alignment != Alignment::mean;
  wanted_[0] = align_ && output.matrices.similarity;
  wanted_[1] = weights && output.matrices.visual_alignment;
  wanted_[2] = weights && output.matrices.text_alignment;
}

bool HeadRun::same_kind(const PruneRequest& a, const PruneOutput& wanted_a, const PruneRequest& b,
                     const PruneOutput& wanted_b) {
  const auto alone = [](const AlignmentMatrices& m) { return m.similarity || m.visual_alignment || m.text_alignment; };
  const auto own = [](const PruneRequest& request) { return request.features.data ? request.features.cols : -1; };
  return !alone(wanted_a.matrices) && !alone(wanted_b.matrices) && a.alignment == b.alignment && a.lambda == b.lambda &&
         a.merge == b.merge && !a.text.data == !b.text.data && !a.saliency == !b.saliency && own(a) == own(b) &&
         !wanted_a.saliency == !wanted_b.saliency;
}

Status HeadRun::add(int64_t tokens, const HiddenStates* hidden, const PruneRequest* request) {
  const int64_t patches = tokens - first_patch();
  if (tokens > most_tokens) return {Code::unsupported, "tokens"};
  if (extent_.images == most_images || extent_.rows + tokens > INT_MAX) return {Code::unsupported, "batch"};
  Image image{};
  image.row = static_cast<int>(extent_.rows);
  image.rows = static_cast<int>(tokens);
  image.patch = static_cast<int>(extent_.patches);
  image.patches = static_cast<int>(patches);
  if (request) {
    const int64_t text_tokens = request->text.rows;
    if (text_tokens > most_text_tokens || text_rows_ + text_tokens + 1 > INT_MAX) return {Code::unsupported, "text"};
    image.text = static_cast<int>(text_rows_);
    image.text_tokens = static_cast<int>(text_tokens);
    image.end_of_text = image.text + static_cast<int>(request->end_of_text ? text_tokens : request->end_of_text_row);
    image.keep = static_cast<int>(request->keep);
    image.task_keep = static_cast<int>(request->task_keep);
    image.kept = static_cast<int>(extent_.kept);
    text_rows_ += text_tokens + (request->end_of_text ? 1 : 0);
    extent_.kept += request->keep;
    extent_.max_text_tokens = std::max(extent_.max_text_tokens, static_cast<int>(round_up(text_tokens, text_step)));
    extent_.max_keep = std::max(extent_.max_keep, image.keep);
  }
  extent_.images++;
  extent_.rows += tokens;
  extent_.patches += patches;
  extent_.max_rows = std::max(extent_.max_rows, image.rows);
  extent_.max_patches = std::max(extent_.max_patches, image.patches);
  images_.push_back(image);
  hidden_.push_back(hidden);
  requests_.push_back(request);
  in_place_.push_back(false);
  return {};
}

// The operands of the attention; the saliency's are always q and k.
PackedHead::Block HeadRun::left() const {
  return encoding_ == Encoding::kk ? PackedHead::k : encoding_ == Encoding::vv ? PackedHead::v : PackedHead::q;
}
PackedHead::Block HeadRun::right() const { return encoding_ == Encoding::qk ? PackedHead::k : left(); }

bool HeadRun::projects_k() const {
  return encoding_ == Encoding::kk || encoding_ == Encoding::qk || !config_.class_token;
}
bool HeadRun::folds_saliency() const { return !projects_k(); }
// A map of the caller's stands for it, unless the analysis is kept, and then there is no request.
bool HeadRun::computes_saliency() const { return !own_map_; }

// -------------------------------------------------------------------------------------------------------- memory

// In the order of Arrays.
void HeadRun::plan_arrays(MemoryPlan& plan, int64_t (&places)[5]) const {
  const int64_t sizes[] = {extent_.patches * config_.width, extent_.patches, extent_.rows * config_.projection_dim,
                           extent_.images * config_.projection_dim, extent_.patches};
  for (int i = 0; i < 5; i++) places[i] = plan.take(sizes[i] * 4);
}

int64_t HeadRun::analysis_bytes() const {
  MemoryPlan plan;
  int64_t places[5];
  plan_arrays(plan, places);
  return plan.size();
}

Arrays HeadRun::analysis_of(char* block, int64_t i) const {
  MemoryPlan plan;
  int64_t places[5];
  plan_arrays(plan, places);
  const Image& image = images_[static_cast<size_t>(i)];
  const auto at = [&](int array, int64_t elements) { return block + places[array] + elements * 4; };
  return {at(0, image.patch * config_.width), at(1, image.patch), at(2, image.row * config_.projection_dim),
          at(3, i * config_.projection_dim), at(4, image.patch)};
}

void HeadRun::plan_memory() {
  MemoryPlan plan;
  Places& p = place_;
  text_rows_ = round_up(text_rows_, text_step);
  const int64_t patches = extent_.patches, kept = extent_.kept, features = patches * feature_width_;
  p.header = plan.take(sizeof(Header));
  p.images = plan.take(extent_.images * static_cast<int64_t>(sizeof(Image)));
  p.text = plan.take(text_rows_ * config_.projection_dim * 4);
  p.own_map = plan.take(own_map_ ? patches * 4 : 0);
  p.own_features = plan.take(own_features_ ? features * 4 : 0);
  p.report = plan.take(sizeof(Report));
  if (prune_) {
    p.indices = plan.take(kept * 4);
    p.source = plan.take(kept);
    p.assignment = plan.take(patches * 4);
    p.counts = plan.take(kept * 4);
    p.task = plan.take(align_ ? patches * 4 : 0);
    p.map = plan.take(wants_map_ ? patches * 4 : 0);
    p.tokens = plan.take(kept * feature_width_ * 4);
    for (int i = 0; i < 3; i++) p.matrices[i] = plan.take(wanted_[i] ? patches * images_[0].text_tokens * 4 : 0);
  }
  p.mirror_size = plan.size();

  const int planes = precision_ == Precision::fp32 ? 2 : 1;
  const auto operand = [&](int64_t ld) { return plan.take(planes * extent_.rows * ld * 2); };
  if (head_) {
    const PackedHead& weights = head_->weights;
    p.analysis = plan.take(analysis_bytes());
    p.normal = operand(padded_width(config_.width));
    p.projected = operand(projected_columns());
    p.context = operand(context_ld());
    p.squares = plan.take(extent_.rows * (weights.squared / squares_slice) * 4);
    p.read_out = plan.take(extent_.rows * config_.projection_dim * 4);
    p.embed_scratch = plan.take(embed_scratch(extent_, projection_dim(), config_.class_token) * 4);
    const int heads = static_cast<int>(config_.heads);
    p.saliency_scratch = plan.take(4 * (!computes_saliency() ? 0
                                          : folds_saliency() ? folded_saliency_scratch(extent_, heads, weights.projection.all().in)
                                                             : saliency_scratch(extent_, heads, config_.class_token)));
    p.intermediate = plan.take(intermediates_ ? extent_.rows * config_.width * 4 : 0);
  }
  if (prune_) {
    p.unit_text = plan.take(text_rows_ * config_.projection_dim * 4);
    p.own_inverse_norm = plan.take(own_features_ ? patches * 4 : 0);
    p.align_scratch = plan.take(align_ ? align_scratch(extent_) * 4 : 0);
    p.merge_scratch = plan.take(merge_ ? merge_scratch(extent_) : 0);
  }
  p.size = plan.size();
}

GraphKey HeadRun::key() const {
  const int parts = (head_ ? 1 : 0) | (prune_ ? 2 : 0) | (half_ ? 4 : 0) | (intermediates_ ? 8 : 0) | (merge_ ? 16 : 0) |
                    (own_map_ ? 32 : 0) | (own_features_ ? 64 : 0) | (wanted_[0] ? 128 : 0) | (wanted_[1] ? 256 : 0) |
                    (wanted_[2] ? 512 : 0) | (wants_map_ ? 1024 : 0) | (align_ ? 2048 : 0);
  return {head_ ? head_->serial : -1, parts, config_.width, config_.projection_dim, config_.class_token,
          static_cast<int64_t>(encoding_), static_cast<int64_t>(alignment_), feature_width_, text_rows_,
          extent_.images, extent_.rows, extent_.patches, extent_.kept,
          extent_.max_rows, extent_.max_patches, extent_.max_text_tokens, extent_.max_keep,
          wanted_[0] || wanted_[1] || wanted_[2] ? images_[0].text_tokens : 0};
}

Operand HeadRun::operand(int64_t place, int64_t ld) const {
  uint16_t* hi = device<uint16_t>(place);
  return {hi, precision_ == Precision::fp32 ? hi + extent_.rows * ld : nullptr, ld};
}

Operand HeadRun::block(PackedHead::Block which) const {
  const Operand all = operand(place_.projected, projected_columns());
  const int64_t first = which * head_->weights.inner;
  return {all.hi + first, all.lo ? all.lo + first : nullptr, all.ld};
}

// ---------------------------------------------------------------------------------------------------------- sending

Status HeadRun::send(const Arrays* kept) {
  // Page-locked memory is read where it is, other memory is copied first.
  const int64_t element = half_ ? 2 : 4;
  MemoryPlan staging;
  std::vector<int64_t> staged(images_.size(), -1);
  for (size_t i = 0; head_ && i < images_.size(); i++) {
    const int64_t bytes = images_[i].rows * config_.width * element;
    images_[i].hidden = mapped_address(hidden_[i]->data, bytes);
    in_place_[i] = images_[i].hidden && reinterpret_cast<uintptr_t>(images_[i].hidden) % 16 == 0;
    if (!in_place_[i]) staged[i] = staging.take(bytes);
  }
  DESAP_TRY(stream_.reserve(place_.size, place_.mirror_size, staging.size()));
  for (size_t i = 0; i < images_.size(); i++) {
    if (staged[i] < 0) continue;
    char* to = stream_.staging() + staged[i];  // one address space: the GPU knows it by the same address
    std::memcpy(to, hidden_[i]->data, static_cast<size_t>(images_[i].rows * config_.width * element));
    images_[i].hidden = to;
  }

  const auto copy = [](const void* from, int64_t count, void* to) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  };
  const int64_t size = config_.projection_dim;
  if (prune_) std::memset(mirror<char>(place_.text), 0, static_cast<size_t>(text_rows_ * size) * sizeof(float));
  for (size_t i = 0; prune_ && i < images_.size(); i++) {
    const PruneRequest& request = *requests_[i];
    const Image& image = images_[i];
    float* text = mirror<float>(place_.text) + image.text * size;
    for (int64_t j = 0; j < image.text_tokens; j++) copy(request.text.row(j), size, text + j * size);
    if (request.end_of_text) copy(request.end_of_text, size, text + image.text_tokens * size);
    if (own_map_) copy(request.saliency, image.patches, mirror<float>(place_.own_map) + image.patch);
    if (own_features_) {
      float* features = mirror<float>(place_.own_features) + image.patch * feature_width_;
      for (int64_t j = 0; j < image.patches; j++) {
        copy(request.features.row(j), feature_width_, features + j * feature_width_);
      }
    }
  }
  std::memcpy(mirror<char>(place_.images), images_.data(), images_.size() * sizeof(Image));

  Header& h = *mirror<Header>(place_.header);
  h.analysis = kept ? *kept : analysis_of(device<char>(place_.analysis), 0);
  h.map = own_map_ ? device<char>(place_.own_map) : h.analysis.saliency;
  h.merge_features = own_features_ ? device<char>(place_.own_features) : h.analysis.features;
  h.merge_inverse_norm = own_features_ ? device<char>(place_.own_inverse_norm) : h.analysis.inverse_norm;
  h.lambda = lambda_;
  *mirror<Report>(place_.report) = {no_fault, no_fault, no_fault, no_fault, no_fault, no_fault, {}};
  return {};
}

Status HeadRun::execute(const Arrays* kept) {
  plan_memory();
  DESAP_TRY(send(kept));
  DESAP_TRY(stream_.run(key(), [this] { enqueue(); }, &milliseconds_));
  return fault();
}

// -------------------------------------------------------------------------------------------------------- the graph

void HeadRun::enqueue() {
  Queue& queue = stream_.queue;
  const size_t sent = static_cast<size_t>(place_.report) + sizeof(Report);
  queue.note(cudaMemcpyAsync(stream_.device(), stream_.mirror(), sent, cudaMemcpyHostToDevice, queue.stream));
  queue.follows_kernel = false;
  if (head_) {
    enqueue_analyze();
  } else {
    enqueue_inputs(queue);
  }
  if (prune_) enqueue_prune();
  if (wants_map_) {
    const char* map = analysis_of(device<char>(place_.analysis), 0).saliency;
    queue.note(cudaMemcpyAsync(device<char>(place_.map), map, static_cast<size_t>(extent_.patches) * sizeof(float),
                               cudaMemcpyDeviceToDevice, queue.stream));
  }
  const size_t received = static_cast<size_t>(place_.mirror_size - place_.report);
  queue.note(cudaMemcpyAsync(stream_.mirror() + place_.report, stream_.device() + place_.report, received,
                             cudaMemcpyDeviceToHost, queue.stream));
}

// What the question brings is made ready: nothing of it needs the image.
void HeadRun::enqueue_inputs(Queue& queue) {
  if (!prune_) return;
  const int64_t size = config_.projection_dim;
  unit_rows(queue, {device<const float>(place_.text), text_rows_, size, size},
            {device<float>(place_.unit_text), text_rows_, size, size}, &report()->text);
  if (own_features_ && merge_) {
    inverse_norms(queue, {device<const float>(place_.own_features), extent_.patches, feature_width_, feature_width_},
                  device<float>(place_.own_inverse_norm), &report()->features);
  }
}

void HeadRun::enqueue_analyze() {
  Queue& queue = stream_.queue;
  const PackedHead& weights = head_->weights;
  const Image* images = device<Image>(place_.images);
  const int width = static_cast<int>(config_.width);
  const Operand normal = operand(place_.normal, padded_width(config_.width));
  const Operand projected = operand(place_.projected, projected_columns());
  const Operand context = operand(place_.context, context_ld());

  // The attention writes its heads, the product behind it reads whole steps.
  for (uint16_t* plane : {context.hi, context.lo}) {
    if (!plane || context.ld == weights.inner) continue;
    const size_t pitch = static_cast<size_t>(context.ld) * 2, used = static_cast<size_t>(weights.inner) * 2;
    queue.note(cudaMemset2DAsync(plane + weights.inner, pitch, 0, pitch - used, static_cast<size_t>(extent_.rows),
                                 queue.stream));
  }
  stream_.fork();
  enqueue_inputs(stream_.branch);

  Normalize to_normal{};
  to_normal.images = images;
  to_normal.extent = extent_;
  to_normal.width = width;
  to_normal.half = half_;
  to_normal.class_token = config_.class_token;
  to_normal.epsilon = config_.epsilon;
  to_normal.normal = normal;
  to_normal.features = slot<float>(&header()->analysis.features);
  to_normal.inverse_norm = slot<float>(&header()->analysis.inverse_norm);
  to_normal.fault = &report()->hidden;
  to_normal.stamp = stamp(at_normalize);
  normalize(queue, precision_, to_normal);

  const Weights qvk = weights.projection.rows(0, projected_columns());
  linear(queue, precision_, normal, extent_.rows, qvk, projected, stamp(at_project));

  stream_.fork();
  if (computes_saliency()) enqueue_saliency(stream_.branch);

  Attention to_context{};
  to_context.images = images;
  to_context.extent = extent_;
  to_context.heads = static_cast<int>(config_.heads);
  to_context.padded_size = weights.padded_size;
  to_context.q = block(left());
  to_context.k = block(right());
  to_context.v = block(PackedHead::v);
  to_context.scale = weights.score_scale(left(), right());
  to_context.y = context;
  to_context.stamp = stamp(at_attention);
  attention(queue, precision_, to_context);

  float* squares = device<float>(place_.squares);
  const Matrix read_out{device<float>(place_.read_out), extent_.rows, config_.projection_dim, config_.projection_dim};
  linear_squares(queue, precision_, context, extent_.rows, weights.read_out.all(), weights.squared, squares, read_out,
                 stamp(at_read_out));
  FoldedReadOut to_embeddings{};
  to_embeddings.images = images;
  to_embeddings.extent = extent_;
  to_embeddings.width = width;
  to_embeddings.projection_dim = projection_dim();
  to_embeddings.class_token = config_.class_token;
  to_embeddings.epsilon = config_.epsilon;
  to_embeddings.squares = squares;
  to_embeddings.slices = weights.squared / squares_slice;
  to_embeddings.projected = read_out;
  to_embeddings.shift = weights.shift();
  to_embeddings.scratch = device<float>(place_.embed_scratch);
  to_embeddings.embeddings = slot<float>(&header()->analysis.embeddings);
  to_embeddings.global = slot<float>(&header()->analysis.global);
  to_embeddings.fault = &report()->overflow;
  folded_read_out(queue, to_embeddings);
  stream_.join();
}

void HeadRun::enqueue_saliency(Queue& queue) {
  const PackedHead& weights = head_->weights;
  const auto fill = [&](auto& to_saliency) {
    to_saliency.images = device<Image>(place_.images);
    to_saliency.extent = extent_;
    to_saliency.heads = static_cast<int>(config_.heads);
    to_saliency.padded_size = weights.padded_size;
    to_saliency.q = block(PackedHead::q);
    to_saliency.scale = weights.score_scale(PackedHead::q, PackedHead::k);
    to_saliency.scratch = device<float>(place_.saliency_scratch);
    to_saliency.saliency = slot<float>(&header()->analysis.saliency);
  };
  if (folds_saliency()) {
    FoldedSaliency folded{};
    fill(folded);
    folded.normal = operand(place_.normal, padded_width(config_.width));
    folded.key = weights.block(PackedHead::k);
    folded_saliency(queue, precision_, folded);
  } else {
    Saliency of_keys{};
    fill(of_keys);
    of_keys.class_token = config_.class_token;
    of_keys.k = block(PackedHead::k);
    saliency(queue, precision_, of_keys);
  }
}

void HeadRun::enqueue_prune() {
  Queue& queue = stream_.queue;
  const Image* images = device<Image>(place_.images);
  float* task = align_ ? device<float>(place_.task) : nullptr;
  int* indices = device<int>(place_.indices);
  if (align_) {
    const auto matrix = [&](int i) { return wanted_[i] ? device<float>(place_.matrices[i]) : nullptr; };
    Align to_text{};
    to_text.images = images;
    to_text.extent = extent_;
    to_text.projection_dim = projection_dim();
    to_text.class_token = config_.class_token;
    to_text.visual = slot<const float>(&header()->analysis.embeddings);
    to_text.global = slot<const float>(&header()->analysis.global);
    to_text.text = device<float>(place_.unit_text);
    to_text.alignment = alignment_;
    to_text.lambda = &header()->lambda;
    to_text.scratch = device<float>(place_.align_scratch);
    to_text.task = task;
    to_text.matrices = {matrix(0), matrix(1), matrix(2)};
    to_text.stamp = stamp(at_align);
    align(queue, to_text);
  }
  Select to_keep{};
  to_keep.images = images;
  to_keep.extent = extent_;
  to_keep.task = task;
  to_keep.saliency = slot<const float>(&header()->map);
  to_keep.indices = indices;
  to_keep.source = device<uint8_t>(place_.source);
  to_keep.task_fault = &report()->task;
  to_keep.saliency_fault = &report()->saliency;
  to_keep.stamp = stamp(at_select);
  select(queue, to_keep);

  Merge to_tokens{};
  to_tokens.images = images;
  to_tokens.extent = extent_;
  to_tokens.width = static_cast<int>(feature_width_);
  to_tokens.merge = merge_;
  to_tokens.features = slot<const float>(&header()->merge_features);
  to_tokens.inverse_norm = slot<const float>(&header()->merge_inverse_norm);
  to_tokens.indices = indices;
  to_tokens.tokens = device<float>(place_.tokens);
  to_tokens.assignment = device<int>(place_.assignment);
  to_tokens.counts = device<int>(place_.counts);
  to_tokens.scratch = device<uint8_t>(place_.merge_scratch);
  to_tokens.fault = &report()->features;
  to_tokens.assign_stamp = stamp(at_merge);
  cuda::merge(queue, to_tokens);
}

// ---------------------------------------------------------------------------------------------------------- results

// The first image at fault, and of its faults the first in the order of the stages.
Status HeadRun::fault() const {
  const Report& report = *mirror<Report>(place_.report);
  Status first;
  const auto consider = [&](int index, auto begin, auto count, Code code, const char* what) {
    if (index == no_fault) return;
    for (size_t i = 0; i < images_.size(); i++) {
      const int64_t where = index - begin(images_[i]);
      if (where < 0 || where >= count(images_[i])) continue;
      if (first.good() || static_cast<int64_t>(i) < first.image) first = {code, what, where, static_cast<int64_t>(i)};
    }
  };
  const auto row = [](const Image& image) { return image.row; };
  const auto rows = [](const Image& image) { return image.rows; };
  const auto patch = [](const Image& image) { return image.patch; };
  const auto patches = [](const Image& image) { return image.patches; };
  consider(report.hidden, row, rows, Code::not_finite, "hidden");
  consider(report.overflow, row, rows, Code::not_finite, "hidden");
  consider(report.text, [](const Image& image) { return image.text; }, [](const Image& image) { return image.text_tokens; },
           Code::not_finite, "text");
  consider(report.text, [](const Image& image) { return image.text + image.text_tokens; },
           [](const Image& image) { return image.end_of_text == image.text + image.text_tokens ? 1 : 0; }, Code::not_finite, "endOfText");
  consider(report.task, patch, patches, Code::internal, "task");
  consider(report.saliency, patch, patches, Code::not_finite, "saliency");
  consider(report.features, patch, patches, Code::not_finite, "features");
  return first;
}

Status HeadRun::read_intermediates(const std::vector<Intermediates>& copies) {
  Queue& queue = stream_.queue;
  const PackedHead& weights = head_->weights;
  const Operand context = operand(place_.context, context_ld());
  const Matrix rows{device<float>(place_.intermediate), extent_.rows, config_.width, config_.width};
  const auto read = [&](float* Intermediates::* copy) {
    for (size_t i = 0; i < images_.size(); i++) {
      if (!(copies[i].*copy)) continue;
      const size_t bytes = static_cast<size_t>(images_[i].rows * config_.width) * sizeof(float);
      const float* from = rows.row(images_[i].row);
      queue.note(cudaMemcpyAsync(copies[i].*copy, from, bytes, cudaMemcpyDeviceToHost, queue.stream));
    }
    queue.follows_kernel = false;
  };
  queue.follows_kernel = false;
  from_operand(queue, precision_, context, static_cast<int>(config_.heads), weights.padded_size, nullptr,
               weights.context_scale(), rows);
  read(&Intermediates::context);
  linear(queue, precision_, context, extent_.rows, weights.out.all(), rows, nullptr);
  read(&Intermediates::attention);
  return stream_.finish();
}

void HeadRun::deliver(int64_t i, const PruneRequest& request, const PruneOutput& output) const {
  const Image& image = images_[static_cast<size_t>(i)];
  const auto copy = [&](int64_t place, int64_t first, int64_t count, auto* to) {
    const auto* from = mirror<std::remove_pointer_t<decltype(to)>>(place) + first;
    if (to) std::memcpy(to, from, static_cast<size_t>(count) * sizeof *to);
  };
  copy(place_.tokens, image.kept * feature_width_, image.keep * feature_width_, output.tokens);
  copy(place_.indices, image.kept, image.keep, output.indices);
  copy(place_.source, image.kept, image.keep, output.source);
  copy(place_.assignment, image.patch, image.patches, output.assignment);
  copy(place_.counts, image.kept, image.keep, output.counts);
  if (align_ && output.task) copy(place_.task, image.patch, image.patches, output.task);
  if (wants_map_) copy(place_.map, image.patch, image.patches, output.saliency);
  if (own_map_ && output.saliency) std::copy_n(request.saliency, image.patches, output.saliency);
  float* const matrices[] = {output.matrices.similarity, output.matrices.visual_alignment, output.matrices.text_alignment};
  for (int m = 0; m < 3; m++) {
    if (wanted_[m]) copy(place_.matrices[m], 0, image.patches * request.text.rows, matrices[m]);
  }
}

// The images of a run share its time: each gets its share of the time by its rows.
double HeadRun::share(int64_t i) const {
  return static_cast<double>(images_[static_cast<size_t>(i)].rows) / static_cast<double>(extent_.rows);
}

// Milliseconds of the image from one stage's beginning to another's.
double HeadRun::between(Stage from, Stage to, int64_t i) const {
  const unsigned long long* stamps = mirror<Report>(place_.report)->stamps;
  return stamps[to] > stamps[from] ? static_cast<double>(stamps[to] - stamps[from]) * 1e-6 * share(i) : 0;
}

// From the stage's beginning to the end of the run, the copies before the first stage included.
double HeadRun::after(Stage last, int64_t i) const {
  return std::max(0.0, milliseconds_ * share(i) - between(head_ ? at_normalize : first_of_prune(), last, i));
}

// A stage ends where the next begins, the last one with the run. The saliency runs beside the attention: their time is
// split by their multiply-adds, N^2 D each for scores and for values, 2 N^2 D for the saliency of all queries.
AnalyzeTimings HeadRun::analyze_timings(int64_t i) const {
  AnalyzeTimings t;
  t.normalize = between(at_normalize, at_project, i);
  t.project = between(at_project, at_attention, i);
  const double both = between(at_attention, at_read_out, i);
  t.saliency = config_.class_token || !computes_saliency() ? 0 : both / 2;
  t.attention = both - t.saliency;
  t.read_out = prune_ ? between(at_read_out, first_of_prune(), i) : after(at_read_out, i);
  return t;
}

PruneTimings HeadRun::prune_timings(int64_t i) const {
  PruneTimings t;
  t.align = align_ ? between(at_align, at_select, i) : 0;
  t.select = between(at_select, at_merge, i);
  t.merge = after(at_merge, i);
  return t;
}

}  // namespace desap::cuda
