// The last block of an encoder on the GPU. Sequences of one kind that follow each other run together, up to a number of rows, so that
// small ones fill the GPU; results are the same bits alone and together.
#include "../block.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>
#include <vector>

#include "kernel_run.h"
#include "weights.h"

namespace desap {

using cuda::DeviceBuffer;
using cuda::Engine;
using cuda::KernelRun;
using cuda::Operand;
using cuda::PackedAttention;

namespace {

constexpr int64_t most_rows = 65536;
constexpr int64_t rows_at_once = 8192;

// SigLIP's head on the GPU.
class PooledHead {
 public:
  PooledHead() = default;
  ~PooledHead() {
    for (Linear* layer : layers_) linear_free(layer);
  }
  PooledHead(const PooledHead&) = delete;
  PooledHead& operator=(const PooledHead&) = delete;

  Status pack(Context&, const BlockConfig&, const BlockWeights&);
  const SiglipReadOut& weights() const { return weights_; }

 private:
  SiglipReadOut weights_{};
  std::vector<Linear*> layers_;
  DeviceBuffer vectors_;
};

Status PooledHead::pack(Context& context, const BlockConfig& config, const BlockWeights& w) {
  const int64_t d = config.width, f = config.mlp_width;
  const auto layer = [&](const float* weight, const float* bias, int64_t out, int64_t in, const Linear** to) -> Status {
    layers_.push_back(nullptr);
    DESAP_TRY(linear_pack(context, {weight, out, in, in}, bias, &layers_.back()));
    *to = layers_.back();
    return {};
  };
  DESAP_TRY(layer(w.head_k_weight, w.head_k_bias, d, d, &weights_.key));
  DESAP_TRY(layer(w.head_v_weight, w.head_v_bias, d, d, &weights_.value));
  DESAP_TRY(layer(w.head_out_weight, w.head_out_bias, d, d, &weights_.out));
  DESAP_TRY(layer(w.fc1_weight, w.fc1_bias, f, d, &weights_.fc1));
  DESAP_TRY(layer(w.fc2_weight, w.fc2_bias, d, f, &weights_.fc2));

  std::vector<float> vectors;
  for (const float* vector : {w.post_norm_weight, w.post_norm_bias, w.head_norm_weight, w.head_norm_bias}) {
    vectors.insert(vectors.end(), vector, vector + d);
  }
  for (int64_t i = 0; i < d; i++) {
    double query = w.head_q_bias ? static_cast<double>(w.head_q_bias[i]) : 0;
    for (int64_t j = 0; j < d; j++) query += static_cast<double>(w.head_q_weight[i * d + j]) * static_cast<double>(w.probe[j]);
    vectors.push_back(static_cast<float>(query));
  }
  cuda::StreamLock stream(*context.engine);
  DESAP_TRY(stream.take());
  DESAP_TRY(cuda::send(*stream, vectors, &vectors_));
  const float* at = reinterpret_cast<const float*>(vectors_.data());
  for (const float** to : {&weights_.post_norm_weight, &weights_.post_norm_bias, &weights_.norm_weight, &weights_.norm_bias, &weights_.query}) {
    *to = at;
    at += d;
  }
  weights_.heads = config.heads;
  weights_.epsilon = config.epsilon;
  return {};
}

}  // namespace

struct Block::State {
  BlockConfig config{};
  std::shared_ptr<Engine> engine;
  PackedAttention weights;
  PooledHead pooled;
};

Block::Block(std::unique_ptr<State> state) : state_(std::move(state)) {}
Block::~Block() = default;
const BlockConfig& Block::config() const { return state_->config; }

Status Block::create(Context& context, const BlockConfig& config, const BlockWeights& w, std::shared_ptr<Block>* block) try {
  auto state = std::make_unique<State>();
  state->config = config;
  state->engine = context.engine;
  {
    cuda::StreamLock stream(*context.engine);
    DESAP_TRY(stream.take());
    DESAP_TRY(state->weights.pack(*stream, context.engine->precision, config.width, config.heads,
                                  {w.norm_weight, w.norm_bias, w.q_weight, w.q_bias, w.k_weight, w.k_bias, w.v_weight, w.v_bias,
                                   w.out_weight, w.out_bias}));
  }
  if (config.mlp_width > 0) DESAP_TRY(state->pooled.pack(context, config, w));
  block->reset(new Block(std::move(state)));
  return {};
} catch (const std::bad_alloc&) {
  return {Code::out_of_memory, "weight"};
}

namespace {

// What sequences that run together have in common.
struct Kind {
  bool half, rotates;
  int exponent;  // of the rotary table
  bool operator==(const Kind& other) const {
    return half == other.half && rotates == other.rotates && exponent == other.exponent;
  }
};
Kind kind_of(const BlockStates& image, int64_t head_size) {
  return {image.hidden.half, image.rotary.cos != nullptr, cuda::rotary_exponent(image.rotary, image.hidden.rows * head_size)};
}

Status check_rotary(const BlockStates& image, int64_t head_size) {
  for (const auto& [what, table] : {std::pair{"cos", image.rotary.cos}, {"sin", image.rotary.sin}}) {
    for (int64_t i = 0; table && i < image.hidden.rows * head_size; i++) {
      if (!std::isfinite(table[i])) return {Code::not_finite, what, i / head_size};
    }
  }
  return {};
}

// The first few sequences of a call, in one run.
class BlockRun {
 public:
  BlockRun(KernelRun& run, const BlockConfig& config, const PackedAttention& weights, const SiglipReadOut& pooled, const Kind& kind,
           const BlockStates* images, const BlockOutput* outputs, int64_t count)
      : run_(run), config_(config), weights_(weights), pooled_(pooled), kind_(kind), images_(images), outputs_(outputs), count_(count),
        any_{} {
    for (int64_t i = 0; i < count; i++) {
      const BlockOutput& o = outputs[i];
      any_.read_out = any_.read_out || o.embeddings;
      any_.attention = any_.attention || o.attention || o.embeddings;
      any_.own = any_.own || o.self_attention;
      any_.saliency = any_.saliency || o.saliency || o.unit_saliency || o.self_attention;
    }
  }

  Status execute(Encoding encoding, BlockTimings* timings) {
    stamps_ = run_.array<unsigned long long>(stages + 1);
    note(normalized);
    load();
    const Matrix attended = any_.attention ? run_.matrix(extent_.rows, config_.width) : Matrix{};
    const Matrix own = any_.own ? run_.matrix(extent_.rows, config_.width) : Matrix{};
    float* scores = any_.saliency ? run_.array<float>(extent_.rows) : nullptr;
    {
      const KernelRun::Scope scope(run_);
      attend(encoding, attended, own, scores);
      DESAP_TRY(fault(run_.check(fault_, "hidden")));
    }
    for (int64_t i = 0; i < count_; i++) DESAP_TRY(read_out(i, attended));
    note(stages);
    for (int64_t i = 0; i < count_; i++) deliver(i, attended, own, scores);
    unsigned long long times[stages + 1] = {};
    run_.download(stamps_, stages + 1, times);
    DESAP_TRY(run_.wait());
    for (int64_t i = 0; timings && i < count_; i++) timings[i] = timings_of(times, i);
    return {};
  }

 private:
  enum Stage { normalized, projected, attended_to, scored, read, stages };

  const cuda::Image& record(int64_t i) const { return records_[static_cast<size_t>(i)]; }
  void note(int stage) {
    if (!run_.queue().failed()) cuda::note_time(run_.queue(), stamps_ + stage);
  }

  // Page-locked memory is read where it is, other memory is copied first.
  void load() {
    const int64_t element = kind_.half ? 2 : 4;
    for (int64_t i = 0; i < count_; i++) {
      const HiddenStates& hidden = images_[i].hidden;
      cuda::Image image{};
      image.row = image.patch = static_cast<int>(extent_.rows);
      image.rows = image.patches = static_cast<int>(hidden.rows);
      const int64_t bytes = hidden.rows * config_.width * element;
      image.hidden = cuda::mapped_address(hidden.data, bytes);
      if (!image.hidden || reinterpret_cast<uintptr_t>(image.hidden) % 16 != 0) {
        image.hidden = run_.upload(static_cast<const char*>(hidden.data), bytes);
      }
      extent_.rows += hidden.rows;
      extent_.max_rows = std::max(extent_.max_rows, image.rows);
      records_.push_back(image);
    }
    extent_.images = static_cast<int>(count_);
    extent_.patches = extent_.rows;
    extent_.max_patches = extent_.max_rows;
    device_records_ = run_.upload(records_.data(), count_);
    fault_ = run_.fault();
  }

  // The attention's rows, those of the block's own, and the saliency: [rows, D] twice and [rows]. Either context takes the normalised rows'
  // memory; q and k are rotated in place, once the attention has read them.
  void attend(Encoding encoding, Matrix attended, Matrix own, float* scores) {
    cuda::Queue& queue = run_.queue();
    const Precision precision = run_.precision();
    const int heads = static_cast<int>(config_.heads), size = static_cast<int>(config_.width / config_.heads);
    const int64_t rows = extent_.rows, normal_ld = cuda::padded_width(config_.width), context_ld = cuda::padded_width(weights_.inner);
    const Operand memory = run_.operand(rows, std::max(normal_ld, context_ld));
    const Operand normal{memory.hi, memory.lo, normal_ld}, context{memory.hi, memory.lo, context_ld};

    cuda::Normalize to_normal{};
    to_normal.images = device_records_;
    to_normal.extent = extent_;
    to_normal.width = static_cast<int>(config_.width);
    to_normal.half = kind_.half;
    to_normal.rms = config_.norm == Norm::rms;
    to_normal.epsilon = config_.epsilon;
    to_normal.normal = normal;
    to_normal.fault = fault_;
    cuda::normalize(queue, precision, to_normal);

    note(projected);
    const auto left = encoding == Encoding::kk ? PackedAttention::k : encoding == Encoding::vv ? PackedAttention::v : PackedAttention::q;
    const auto right = encoding == Encoding::qk ? PackedAttention::k : left;
    Operand blocks[3] = {};
    for (const auto which : {PackedAttention::q, PackedAttention::v, PackedAttention::k}) {
      const bool is_v = which == PackedAttention::v, attends = any_.attention && (which == left || which == right || is_v);
      if (!attends && !(is_v ? any_.own : any_.saliency)) continue;
      blocks[which] = run_.operand(rows, weights_.inner);
      cuda::linear(queue, precision, normal, rows, weights_.block(which), blocks[which], nullptr);
    }

    note(attended_to);
    // An attention writes its heads, the product behind it reads whole steps.
    for (uint16_t* plane : {context.hi, context.lo}) {
      if (!plane || context_ld == weights_.inner || !(any_.attention || any_.own) || queue.failed()) continue;
      const size_t pitch = static_cast<size_t>(context_ld) * 2, used = static_cast<size_t>(weights_.inner) * 2;
      queue.note(cudaMemset2DAsync(plane + weights_.inner, pitch, 0, pitch - used, static_cast<size_t>(rows), queue.stream));
      queue.follows_kernel = false;
    }
    cuda::Attention to_context{};
    to_context.images = device_records_;
    to_context.extent = extent_;
    to_context.heads = heads;
    to_context.padded_size = weights_.padded_size;
    to_context.v = blocks[PackedAttention::v];
    to_context.y = context;
    if (any_.attention) {
      to_context.q = blocks[left];
      to_context.k = blocks[right];
      to_context.scale = weights_.score_scale(left, right);
      cuda::attention(queue, precision, to_context);
      cuda::linear(queue, precision, context, rows, weights_.out.all(), attended, nullptr);
    }

    note(scored);
    if (any_.saliency) {
      if (kind_.rotates) {
        const Rotary table = load_rotary(size);
        for (const auto which : {PackedAttention::q, PackedAttention::k})
          cuda::rotate(queue, precision, blocks[which], rows, heads, weights_.padded_size, size, table);
      }
      const float* scale = run_.upload(weights_.score_scales(PackedAttention::q, PackedAttention::k, 2 * kind_.exponent).data(), heads);
      float* scratch = run_.array<float>(cuda::saliency_scratch(extent_, heads, false));
      if (any_.own) {
        to_context.q = blocks[PackedAttention::q];
        to_context.k = blocks[PackedAttention::k];
        to_context.scale = scale;
        cuda::self_attention(queue, precision, to_context, scratch, scores);
        cuda::linear(queue, precision, context, rows, weights_.out.all(), own, nullptr);
      } else {
        cuda::Saliency to_scores{};
        to_scores.images = device_records_;
        to_scores.extent = extent_;
        to_scores.heads = heads;
        to_scores.padded_size = weights_.padded_size;
        to_scores.q = blocks[PackedAttention::q];
        to_scores.k = blocks[PackedAttention::k];
        to_scores.scale = scale;
        to_scores.scratch = scratch;
        to_scores.saliency = scores;
        cuda::saliency(queue, precision, to_scores);
      }
    }
    note(read);
  }

  // The tables of all images, [rows, dh].
  Rotary load_rotary(int size) {
    float *cos = run_.array<float>(extent_.rows * size), *sin = run_.array<float>(extent_.rows * size);
    for (int64_t i = 0; i < count_ && !run_.queue().failed(); i++) {
      const int64_t first = static_cast<int64_t>(record(i).row) * size;
      cuda::send_rotary(run_, images_[i].rotary, record(i).rows * size, kind_.exponent, cos + first, sin + first);
    }
    return {cos, sin};
  }

  Status read_out(int64_t i, const Matrix& attended) {
    const BlockOutput& o = outputs_[i];
    if (!o.embeddings) return {};
    const KernelRun::Scope scope(run_);
    const int64_t rows = record(i).rows, width = config_.width;
    const Matrix embeddings = run_.matrix(rows + 1, width);  // and behind them the global vector
    float* probe = run_.array<float>(rows);
    const Status status = cuda::siglip_read_out(run_, {attended.row(record(i).row), rows, width, width}, pooled_, embeddings, probe);
    if (status.code == Code::not_finite) return {Code::not_finite, "hidden", status.where, i};
    DESAP_TRY(status);
    run_.download(embeddings.data, rows * width, o.embeddings);
    run_.download(embeddings.row(rows), width, o.global);
    run_.download(probe, rows, o.probe_saliency);
    return run_.wait();
  }

  void deliver(int64_t i, const Matrix& attended, const Matrix& own, const float* scores) {
    const BlockOutput& o = outputs_[i];
    const int64_t rows = record(i).rows, width = config_.width;
    const int64_t first = record(i).row;
    if (o.attention) run_.download(attended.row(first), rows * width, o.attention);
    if (o.self_attention) run_.download(own.row(first), rows * width, o.self_attention);
    if (o.saliency) run_.download(scores + first, rows, o.saliency);
    if (!o.unit_saliency) return;
    if (!images_[i].unit) return run_.download(scores + first, rows, o.unit_saliency);
    const int64_t units = images_[i].units;
    float* means = run_.array<float>(units);
    cuda::pool(run_, scores + first, images_[i].unit, rows, units, means);
    run_.download(means, units, o.unit_saliency);
  }

  // A row of all images as one of an image.
  Status fault(Status status) const {
    for (int64_t i = 0; status.code == Code::not_finite && i < count_; i++) {
      if (status.where >= record(i).row + record(i).rows) continue;
      return {status.code, status.what, status.where - record(i).row, i};
    }
    return status;
  }

  // Each image has its share of the time by its rows.
  BlockTimings timings_of(const unsigned long long (&times)[stages + 1], int64_t i) const {
    const auto of = [&](int stage) {
      const double share = static_cast<double>(record(i).rows) / static_cast<double>(extent_.rows);
      return times[stage + 1] > times[stage] ? static_cast<double>(times[stage + 1] - times[stage]) * 1e-6 * share : 0;
    };
    return {of(normalized), of(projected), of(attended_to), of(scored), of(read)};
  }

  KernelRun& run_;
  const BlockConfig& config_;
  const PackedAttention& weights_;
  const SiglipReadOut& pooled_;
  const Kind kind_;
  const BlockStates* const images_;
  const BlockOutput* const outputs_;
  const int64_t count_;
  struct {
    bool attention, own, saliency, read_out;
  } any_;

  std::vector<cuda::Image> records_;
  cuda::Extent extent_{};
  const cuda::Image* device_records_ = nullptr;
  int* fault_ = nullptr;
  cuda::Stamp stamps_ = nullptr;
};

}  // namespace

// A block lives on the GPU, and at the precision, of the context that made it.
Status Block::analyze(Context&, const BlockStates* images, int64_t count, Encoding encoding, const BlockOutput* outputs,
                      BlockTimings* timings) const {
  Context own{state_->engine};
  const BlockConfig& config = state_->config;
  const int64_t head_size = config.width / config.heads;
  const auto of_image = [&](Status status, int64_t image) {
    status.image = count > 1 ? image : -1;
    return status;
  };
  for (int64_t i = 0; i < count; i++) {
    if (images[i].hidden.rows > most_rows) return of_image({Code::unsupported, "rows"}, i);
  }
  return cuda::with_run(own, "analyze", [&](KernelRun& run) -> Status {
    for (int64_t first = 0, last; first < count; first = last) {
      const Status finite = check_rotary(images[first], head_size);
      if (!finite.good()) return of_image(finite, first);
      const Kind kind = kind_of(images[first], head_size);
      int64_t rows = images[first].hidden.rows;
      for (last = first + 1; last < count && kind_of(images[last], head_size) == kind; last++) {
        rows += images[last].hidden.rows;
        if (rows > rows_at_once || !check_rotary(images[last], head_size).good()) break;
      }
      const KernelRun::Scope scope(run);
      BlockRun part(run, config, state_->weights, state_->pooled.weights(), kind, images + first, outputs + first, last - first);
      const Status status = part.execute(encoding, timings ? timings + first : nullptr);
      if (status.image >= 0) return of_image(status, first + status.image);
      DESAP_TRY(status);
    }
    return {};
  });
}

}  // namespace desap
