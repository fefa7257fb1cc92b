#include "head_object.h"

#include <utility>
#include <vector>

#include "analysis_object.h"
#include "arguments.h"
#include "environment.h"
#include "errors.h"
#include "wrapped.h"

namespace desap {
namespace {

class CreateJob : public Job {
 public:
  CreateJob(const std::shared_ptr<Executor>& executor, const HeadConfig& config, const HeadWeights& weights)
      : executor_(executor), config_(config), weights_(weights) {}

  Outcome run(Context& context) override { return {Head::create(context, config_, weights_, &head_)}; }

  Napi::Value finish(Napi::Env env, Napi::Object) override {
    return construct(Environment::of(env).head, env, HeadObject::State{executor_, head_});
  }

 private:
  const std::shared_ptr<Executor> executor_;
  const HeadConfig config_;
  const HeadWeights weights_;
  std::shared_ptr<Head> head_;
};

// One analysis per image.
class AnalyzeJob : public Job {
 public:
  struct Image {
    HiddenStates hidden;
    AnalysisRecord record;
  };

  AnalyzeJob(const std::shared_ptr<const Head>& head, Encoding encoding, bool intermediates, std::vector<Image> images)
      : head_(head), encoding_(encoding), intermediates_(intermediates), images_(std::move(images)) {}

  Outcome run(Context& context) override {
    for (size_t i = 0; i < images_.size(); i++) {
      const Status status = analyze(context, images_[i]);
      if (!status.good()) return {status, images_.size() > 1 ? static_cast<int64_t>(i) : -1};
    }
    return {};
  }

  Napi::Value finish(Napi::Env env, Napi::Object prepared) override {
    for (size_t i = 0; i < images_.size(); i++) {
      prepared.Set(static_cast<uint32_t>(i),
                   construct(Environment::of(env).analysis, env, std::move(images_[i].record)));
    }
    return prepared;
  }

 private:
  Status analyze(Context& context, Image& image) const {
    const HiddenStates& hidden = image.hidden;
    AnalysisRecord& record = image.record;
    const size_t size = static_cast<size_t>(hidden.tokens * head_->config().width);
    if (intermediates_) {
      record.context.resize(size);
      record.attention.resize(size);
    }
    const Intermediates copies{intermediates_ ? record.context.data() : nullptr,
                               intermediates_ ? record.attention.data() : nullptr};
    std::shared_ptr<Analysis> analysis;
    DESAP_TRY(head_->analyze(context, hidden, encoding_, copies, &analysis));
    record.analysis = std::move(analysis);
    const char* begin = static_cast<const char*>(hidden.data);
    const char* features = static_cast<const char*>(record.analysis->features());
    const char* end = begin + size * (hidden.half ? sizeof(uint16_t) : sizeof(float));
    record.features = features >= begin && features < end ? begin : features;
    return {};
  }

  const std::shared_ptr<const Head> head_;
  const Encoding encoding_;
  const bool intermediates_;
  std::vector<Image> images_;
};

}  // namespace

Napi::Value create_head_object(Napi::Env env, const std::shared_ptr<Executor>& executor, const Napi::Value& value) {
  executor->check_open();
  const Arguments arguments(value, "head");
  constexpr int64_t limit = 1 << 24;
  HeadConfig config;
  config.width = arguments.integer("width", 1, limit);
  config.heads = arguments.integer("heads", 1, config.width);
  config.embedding = arguments.integer("embedding", 1, limit);
  config.class_token = arguments.boolean("classToken");
  config.epsilon = arguments.number("epsilon");
  expect_divides("head.heads", config.heads, config.width);

  HeadWeights weights;
  struct Entry {
    VectorArgument argument;
    int64_t size;
    const float** data;
  };
  std::vector<Entry> entries;
  const int64_t width = config.width;
  const auto layer = [&](const char* key, int64_t size, const float** weight, const float** bias) {
    const Arguments pair = arguments.object(key);
    entries.push_back({pair.vector("weight"), size, weight});
    entries.push_back({pair.vector("bias"), width, bias});
  };
  layer("ln1", width, &weights.ln1_weight, &weights.ln1_bias);
  layer("q", width * width, &weights.q_weight, &weights.q_bias);
  layer("k", width * width, &weights.k_weight, &weights.k_bias);
  layer("v", width * width, &weights.v_weight, &weights.v_bias);
  layer("out", width * width, &weights.out_weight, &weights.out_bias);
  layer("postNorm", width, &weights.post_norm_weight, &weights.post_norm_bias);
  entries.push_back({arguments.vector("visualProjection"), config.embedding * width, &weights.visual_projection});

  MemoryReader memory(env, Access::in_place);
  for (const Entry& entry : entries) {
    *entry.data = static_cast<const float*>(memory.float32(entry.argument.name, entry.argument.data, entry.size).data);
  }
  return executor->run(env, {std::make_unique<CreateJob>(executor, config, weights), Napi::Object()});
}

Napi::Function HeadObject::define(Napi::Env env) {
  return DefineClass(
      env, "Head", {InstanceMethod<&HeadObject::analyze>("analyze"), InstanceMethod<&HeadObject::dispose>("dispose")});
}

HeadObject::HeadObject(const Napi::CallbackInfo& info) : ObjectWrap(info), state_(constructed_from<State>(info)) {}

Napi::Value HeadObject::analyze(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (!state_.head) throw disposed("head");
    const State state = state_;  // reading the arguments can run code that disposes this head
    state.executor->check_open();
    const HeadConfig& config = state.head->config();
    const std::vector<MatrixArgument> images = matrix_arguments(info[0], "hidden");
    const Arguments options(info[1], "options");
    const Encoding encoding = encoding_of(options);
    const bool intermediates = options.boolean("intermediates");
    const bool sync = info[2].ToBoolean();
    for (const MatrixArgument& image : images) {
      expect_shape(image, image.rows, config.width);
      if (config.class_token && image.rows < 2)
        throw invalid("ERR_SHAPE", image.name, "1 row", "the class token and at least one patch");
    }
    const Napi::Array prepared = Napi::Array::New(env, images.size());
    MemoryReader reader(env, sync ? Access::in_place : Access::held);
    std::vector<AnalyzeJob::Image> inputs;
    for (const MatrixArgument& image : images) {
      Memory memory = reader.matrix(image);
      AnalysisRecord record;
      record.executor = state.executor;
      record.embedding = config.embedding;
      record.half = image.half;
      inputs.push_back({{memory.data, image.half, image.rows, std::move(memory.hold)}, std::move(record)});
    }
    return state.executor->execute(
        env, {std::make_unique<AnalyzeJob>(state.head, encoding, intermediates, std::move(inputs)), prepared}, sync);
  });
}

void HeadObject::dispose(const Napi::CallbackInfo&) { state_ = {}; }

}  // namespace desap
