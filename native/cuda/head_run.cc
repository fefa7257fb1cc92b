#include "head_run.h"

#include <algorithm>
#include <climits>
#include <cstring>

namespace desap::cuda {
namespace {

constexpr int64_t most_rows = 65536, most_text_tokens = 4096;
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

bool HeadRun::same_kind(const GivenImage& a, const GivenImage& b) {
  if (a.hidden->half != b.hidden->half || !a.request != !b.request) return false;
  if (!a.request) return true;
  const auto width = [](ConstMatrix given) { return given.data ? given.cols : -1; };
  const PruneRequest &p = *a.request, &q = *b.request;
  return !any(a.output->matrices) && !any(b.output->matrices) && p.alignment == q.alignment && p.lambda == q.lambda &&
         p.merge == q.merge && !p.text.data == !q.text.data && !p.task == !q.task && !p.saliency == !q.saliency && width(p.features) == width(q.features) &&
         p.complement == q.complement && width(p.distances) == width(q.distances) &&
         !a.output->saliency == !b.output->saliency;
}

void HeadRun::analyze(Encoding encoding, bool intermediates) {
  encoding_ = encoding;
  intermediates_ = intermediates;
}

Status HeadRun::add(int64_t rows, const GivenImage& given) {
  const int64_t patches = rows - first_patch();
  if (rows > most_rows) return {Code::unsupported, "rows"};
  if (extent_.images == most_images || extent_.rows + rows > INT_MAX) return {Code::unsupported, "batch"};
  Image image{};
  image.row = static_cast<int>(extent_.rows);
  image.rows = static_cast<int>(rows);
  image.patch = static_cast<int>(extent_.patches);
  image.patches = static_cast<int>(patches);
  if (const PruneRequest* request = given.request) {
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
    picks_ = std::max(picks_, request->keep - request->task_keep);
    has_seedless_ = has_seedless_ || request->task_keep == 0;
    extent_.max_text_tokens = std::max(extent_.max_text_tokens, static_cast<int>(round_up(text_tokens, text_step)));
    extent_.max_keep = std::max(extent_.max_keep, image.keep);
  }
  extent_.images++;
  extent_.rows += rows;
  extent_.patches += patches;
  extent_.max_rows = std::max(extent_.max_rows, image.rows);
  extent_.max_patches = std::max(extent_.max_patches, image.patches);
  given_.push_back(given);
  images_.push_back(image);
  in_place_.push_back(false);
  return {};
}

bool HeadRun::wants_map() const { return head_ && prunes() && given_.front().output->saliency && !own_map(); }

AlignmentMatrices HeadRun::matrices() const {
  if (!aligns()) return {};
  AlignmentMatrices wanted = given_.front().output->matrices;
  if (request().alignment == Alignment::mean) wanted.visual_alignment = wanted.text_alignment = nullptr;
  return wanted;
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
bool HeadRun::computes_saliency() const { return !own_map(); }

// -------------------------------------------------------------------------------------------------------- memory

ArraysOf<int64_t> HeadRun::plan_analysis(MemoryPlan& plan) const {
  const auto floats = [&](int64_t count) { return plan.take(count * 4); };
  ArraysOf<int64_t> places;
  places.features = floats(extent_.patches * config_.width);
  places.inverse_norm = floats(extent_.patches);
  places.embeddings = floats(extent_.rows * config_.projection_dim);
  places.global = floats(extent_.images * config_.projection_dim);
  places.saliency = floats(extent_.patches);
  return places;
}

int64_t HeadRun::analysis_bytes() const {
  MemoryPlan plan;
  plan_analysis(plan);
  return plan.size();
}

Arrays HeadRun::analysis_of(char* block, int64_t i) const {
  MemoryPlan plan;
  const ArraysOf<int64_t> places = plan_analysis(plan);
  const Image& image = images_[static_cast<size_t>(i)];
  const auto at = [&](int64_t place, int64_t elements) { return block + place + elements * 4; };
  Arrays arrays;
  arrays.features = at(places.features, image.patch * config_.width);
  arrays.inverse_norm = at(places.inverse_norm, image.patch);
  arrays.embeddings = at(places.embeddings, image.row * config_.projection_dim);
  arrays.global = at(places.global, i * config_.projection_dim);
  arrays.saliency = at(places.saliency, image.patch);
  return arrays;
}

void HeadRun::plan_memory() {
  MemoryPlan plan;
  Places& p = place_;
  text_rows_ = round_up(text_rows_, text_step);
  const int64_t patches = extent_.patches, kept = extent_.kept, features = patches * feature_width();
  p.header = plan.take(sizeof(Header));
  p.images = plan.take(extent_.images * static_cast<int64_t>(sizeof(Image)));
  p.text = plan.take(text_rows_ * config_.projection_dim * 4);
  p.own_task = plan.take(own_task() ? patches * 4 : 0);
  p.own_map = plan.take(own_map() ? patches * 4 : 0);
  p.own_features = plan.take(own_features() ? features * 4 : 0);
  p.own_distances = plan.take(own_distances() ? patches * distance_width() * 4 : 0);
  p.report = plan.take(sizeof(Report));
  if (prunes()) {
    const AlignmentMatrices wanted = matrices();
    const auto matrix = [&](const float* one) { return plan.take(one ? patches * images_[0].text_tokens * 4 : 0); };
    p.indices = plan.take(kept * 4);
    p.source = plan.take(kept);
    p.assignment = plan.take(patches * 4);
    p.counts = plan.take(kept * 4);
    p.task = plan.take(patches * 4);
    p.map = plan.take(wants_map() ? patches * 4 : 0);
    p.tokens = plan.take(kept * feature_width() * 4);
    p.similarity = matrix(wanted.similarity);
    p.visual_alignment = matrix(wanted.visual_alignment);
    p.text_alignment = matrix(wanted.text_alignment);
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
    p.read_out_scratch = plan.take(folded_read_out_scratch(extent_, projection_dim(), config_.class_token) * 4);
    const int heads = static_cast<int>(config_.heads);
    p.saliency_scratch = plan.take(4 * (!computes_saliency() ? 0
                                          : folds_saliency() ? folded_saliency_scratch(extent_, heads, weights.projection.all().in)
                                                             : saliency_scratch(extent_, heads, config_.class_token)));
    p.intermediate = plan.take(intermediates_ ? extent_.rows * config_.width * 4 : 0);
  }
  if (prunes()) {
    p.unit_text = plan.take(text_rows_ * config_.projection_dim * 4);
    p.own_inverse_norm = plan.take(own_features() ? patches * 4 : 0);
    p.align_scratch = plan.take(aligns() ? align_scratch(extent_) * 4 : 0);
    p.merge_scratch = plan.take(merges() ? merge_scratch(extent_) : 0);
    p.seeds = plan.take(diverse() ? kept * 4 : 0);
    p.sums = plan.take(begins_apart() ? extent_.images * distance_width() * 4 : 0);
    p.closest = plan.take(diverse() ? patches * 4 : 0);
    p.picks = plan.take(diverse() ? extent_.images * picks_ * static_cast<int64_t>(sizeof(Pick)) : 0);
    p.distance_inverse_norm = plan.take(own_distances() ? patches * 4 : 0);
  }
  p.size = plan.size();
}

GraphKey HeadRun::key() const {
  const AlignmentMatrices wanted = matrices();
  int64_t parts = 0;
  for (const bool part : {head_ != nullptr, prunes(), half(), intermediates_, aligns(), merges(), own_task(), own_map(), own_features(), own_distances(), begins_apart(), wants_map(),
                          wanted.similarity != nullptr, wanted.visual_alignment != nullptr, wanted.text_alignment != nullptr}) {
    parts = parts << 1 | part;
  }
  return {head_ ? head_->serial : -1, parts, config_.width, config_.projection_dim, config_.class_token,
          static_cast<int64_t>(encoding_), prunes() ? static_cast<int64_t>(request().alignment) : -1, feature_width(), diverse() ? distance_width() : 0,
          diverse() ? picks_ : 0, text_rows_,
          extent_.images, extent_.rows, extent_.patches, extent_.kept,
          extent_.max_rows, extent_.max_patches, extent_.max_text_tokens, extent_.max_keep,
          wanted.similarity || wanted.visual_alignment || wanted.text_alignment ? images_[0].text_tokens : 0};
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
  const int64_t element = half() ? 2 : 4;
  MemoryPlan staging;
  std::vector<int64_t> staged(images_.size(), -1);
  for (size_t i = 0; head_ && i < images_.size(); i++) {
    const int64_t bytes = images_[i].rows * config_.width * element;
    images_[i].hidden = mapped_address(given_[i].hidden->data, bytes);
    in_place_[i] = images_[i].hidden && reinterpret_cast<uintptr_t>(images_[i].hidden) % 16 == 0;
    if (!in_place_[i]) staged[i] = staging.take(bytes);
  }
  DESAP_TRY(stream_.reserve(place_.size, place_.mirror_size, staging.size()));
  for (size_t i = 0; i < images_.size(); i++) {
    if (staged[i] < 0) continue;
    char* to = stream_.staging() + staged[i];  // one address space: the GPU knows it by the same address
    std::memcpy(to, given_[i].hidden->data, static_cast<size_t>(images_[i].rows * config_.width * element));
    images_[i].hidden = to;
  }

  const auto copy = [](const void* from, int64_t count, void* to) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  };
  const int64_t size = config_.projection_dim;
  if (prunes()) std::memset(mirror<char>(place_.text), 0, static_cast<size_t>(text_rows_ * size) * sizeof(float));
  for (size_t i = 0; prunes() && i < images_.size(); i++) {
    const PruneRequest& request = *given_[i].request;
    const Image& image = images_[i];
    float* text = mirror<float>(place_.text) + image.text * size;
    for (int64_t j = 0; j < image.text_tokens; j++) copy(request.text.row(j), size, text + j * size);
    if (request.end_of_text) copy(request.end_of_text, size, text + image.text_tokens * size);
    if (request.task) copy(request.task, image.patches, mirror<float>(place_.own_task) + image.patch);
    if (request.saliency) copy(request.saliency, image.patches, mirror<float>(place_.own_map) + image.patch);
    const auto copy_rows = [&](ConstMatrix rows, int64_t place) {
      float* to = mirror<float>(place) + image.patch * rows.cols;
      for (int64_t j = 0; j < image.patches; j++) copy(rows.row(j), rows.cols, to + j * rows.cols);
    };
    if (request.features.data) copy_rows(request.features, place_.own_features);
    if (own_distances()) copy_rows(request.distances, place_.own_distances);
  }
  std::memcpy(mirror<char>(place_.images), images_.data(), images_.size() * sizeof(Image));

  Header& h = *mirror<Header>(place_.header);
  h.analysis = kept ? *kept : analysis_of(device<char>(place_.analysis), 0);
  h.map = own_map() ? device<char>(place_.own_map) : h.analysis.saliency;
  h.merge_features = own_features() ? device<char>(place_.own_features) : h.analysis.features;
  h.merge_inverse_norm = own_features() ? device<char>(place_.own_inverse_norm) : h.analysis.inverse_norm;
  h.distances = own_distances() ? device<char>(place_.own_distances) : h.merge_features;
  h.distance_inverse_norm = own_distances() ? device<char>(place_.distance_inverse_norm) : h.merge_inverse_norm;
  h.lambda = prunes() ? request().lambda : 0;
  *mirror<Report>(place_.report) = {no_fault, no_fault, no_fault, no_fault, no_fault, no_fault, no_fault, {}};
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
  if (prunes()) enqueue_prune();
  if (wants_map()) {
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
  if (!prunes()) return;
  const int64_t size = config_.projection_dim;
  unit_rows(queue, {device<const float>(place_.text), text_rows_, size, size},
            {device<float>(place_.unit_text), text_rows_, size, size}, &report()->text);
  const auto to_norms = [&](int64_t rows, int64_t width, int64_t norms, int* fault) {
    inverse_norms(queue, {device<const float>(rows), extent_.patches, width, width}, device<float>(norms), fault);
  };
  if (own_features() && (merges() || (diverse() && !own_distances())))
    to_norms(place_.own_features, feature_width(), place_.own_inverse_norm, &report()->features);
  if (own_distances()) to_norms(place_.own_distances, distance_width(), place_.distance_inverse_norm, &report()->distances);
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
  to_normal.half = half();
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
  to_embeddings.scratch = device<float>(place_.read_out_scratch);
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
  float* task = device<float>(place_.task);
  int* indices = device<int>(place_.indices);
  if (aligns()) {
    const AlignmentMatrices wanted = matrices();
    const auto matrix = [&](const float* one, int64_t place) { return one ? device<float>(place) : nullptr; };
    Align to_text{};
    to_text.images = images;
    to_text.extent = extent_;
    to_text.projection_dim = projection_dim();
    to_text.class_token = config_.class_token;
    to_text.visual = slot<const float>(&header()->analysis.embeddings);
    to_text.global = slot<const float>(&header()->analysis.global);
    to_text.text = device<float>(place_.unit_text);
    to_text.alignment = request().alignment;
    to_text.lambda = &header()->lambda;
    to_text.scratch = device<float>(place_.align_scratch);
    to_text.task = task;
    to_text.matrices.similarity = matrix(wanted.similarity, place_.similarity);
    to_text.matrices.visual_alignment = matrix(wanted.visual_alignment, place_.visual_alignment);
    to_text.matrices.text_alignment = matrix(wanted.text_alignment, place_.text_alignment);
    to_text.stamp = stamp(at_align);
    align(queue, to_text);
  } else if (!own_task()) {  // none of these is chosen
    queue.note(cudaMemsetAsync(task, 0, static_cast<size_t>(extent_.patches) * sizeof(float), queue.stream));
    queue.follows_kernel = false;
  }
  Select to_keep{};
  to_keep.images = images;
  to_keep.extent = extent_;
  to_keep.task = own_task() ? device<float>(place_.own_task) : task;
  if (!diverse()) to_keep.saliency = slot<const float>(&header()->map);
  to_keep.indices = diverse() ? device<int>(place_.seeds) : indices;
  to_keep.source = device<uint8_t>(place_.source);
  to_keep.task_fault = &report()->task;
  to_keep.saliency_fault = &report()->saliency;
  to_keep.stamp = stamp(at_select);
  select(queue, to_keep);
  if (diverse()) enqueue_diversity();

  Merge to_tokens{};
  to_tokens.images = images;
  to_tokens.extent = extent_;
  to_tokens.width = static_cast<int>(feature_width());
  to_tokens.merge = merges();
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

// After select, which has left what the task scores chose.
void HeadRun::enqueue_diversity() {
  FarthestPoints to_rest{};
  to_rest.images = device<Image>(place_.images);
  to_rest.extent = extent_;
  to_rest.width = static_cast<int>(distance_width());
  to_rest.steps = static_cast<int>(picks_);
  to_rest.rows = slot<const float>(&header()->distances);
  to_rest.inverse_norm = slot<const float>(&header()->distance_inverse_norm);
  to_rest.seeds = device<int>(place_.seeds);
  to_rest.sums = begins_apart() ? device<float>(place_.sums) : nullptr;
  to_rest.closest = device<float>(place_.closest);
  to_rest.picks = device<Pick>(place_.picks);
  to_rest.indices = device<int>(place_.indices);
  to_rest.source = device<uint8_t>(place_.source);
  farthest_points(stream_.queue, to_rest);
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
  consider(report.task, patch, patches, own_task() ? Code::not_finite : Code::internal, "task");
  consider(report.saliency, patch, patches, Code::not_finite, "saliency");
  consider(report.distances, patch, patches, Code::not_finite, "distances");
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

void HeadRun::deliver(int64_t i) const {
  const Image& image = images_[static_cast<size_t>(i)];
  const PruneOutput& output = *given_[static_cast<size_t>(i)].output;
  const int64_t width = feature_width();
  const auto copy = [&](int64_t place, int64_t first, int64_t count, auto* to) {
    const auto* from = mirror<std::remove_pointer_t<decltype(to)>>(place) + first;
    if (to) std::memcpy(to, from, static_cast<size_t>(count) * sizeof *to);
  };
  copy(place_.tokens, image.kept * width, image.keep * width, output.tokens);
  copy(place_.indices, image.kept, image.keep, output.indices);
  copy(place_.source, image.kept, image.keep, output.source);
  copy(place_.assignment, image.patch, image.patches, output.assignment);
  copy(place_.counts, image.kept, image.keep, output.counts);
  if (own_task() || aligns()) copy(own_task() ? place_.own_task : place_.task, image.patch, image.patches, output.task);
  if (wants_map()) copy(place_.map, image.patch, image.patches, output.saliency);
  if (own_map()) copy(place_.own_map, image.patch, image.patches, output.saliency);
  const AlignmentMatrices wanted = matrices();
  const int64_t pairs = image.patches * image.text_tokens;
  copy(place_.similarity, 0, pairs, wanted.similarity);
  copy(place_.visual_alignment, 0, pairs, wanted.visual_alignment);
  copy(place_.text_alignment, 0, pairs, wanted.text_alignment);
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
  t.read_out = prunes() ? between(at_read_out, first_of_prune(), i) : after(at_read_out, i);
  return t;
}

PruneTimings HeadRun::prune_timings(int64_t i) const {
  PruneTimings t;
  t.align = aligns() ? between(at_align, at_select, i) : 0;
  t.select = between(at_select, at_merge, i);
  t.merge = after(at_merge, i);
  return t;
}

}  // namespace desap::cuda
