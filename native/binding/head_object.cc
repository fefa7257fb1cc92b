#include "head_object.h"

#include <utility>
#include <vector>

#include "analysis_object.h"
#include "arguments.h"
#include "environment.h"
#include "errors.h"
#include "prune_job.h"
#include "wrapped.h"

namespace desap {
namespace {

class CreateJob : public Job {
 public:
  CreateJob(const std::shared_ptr<Executor>& executor, const HeadConfig& config, const HeadWeights& weights,
            std::vector<Hold> holds)
      : executor_(executor), config_(config), weights_(weights), holds_(std::move(holds)) {}

  Status run(Context& context) override { return Head::create(context, config_, weights_, &head_); }

  Napi::Value finish(Napi::Env env, Napi::Object) override {
    return construct<HeadObject>(env, Environment::of(env).head, {executor_, head_});
  }

 private:
  const std::shared_ptr<Executor> executor_;
  const HeadConfig config_;
  const HeadWeights weights_;
  const std::vector<Hold> holds_;  // of the weights
  std::shared_ptr<Head> head_;
};

// Of a call with several images.
struct Images {
  Images(const Napi::Value& value, const HeadConfig& config) : arguments(matrix_arguments(value, "hidden")) {
    for (const MatrixArgument& image : arguments) {
      expect_shape(image, image.rows, config.width);
      if (config.class_token && image.rows < 2)
        throw invalid("ERR_SHAPE", image.name, "1 row", "the class token and at least one patch");
    }
  }

  std::vector<HiddenStates> hold(MemoryReader& reader) const {
    std::vector<HiddenStates> images;
    for (const MatrixArgument& image : arguments) {
      Memory memory = reader.matrix(image);
      images.push_back({memory.data, image.half, image.rows, std::move(memory.hold)});
    }
    return images;
  }

  std::vector<MatrixArgument> arguments;
};

// One analysis per image.
class AnalyzeJob : public Job {
 public:
  AnalyzeJob(HeadObject::State state, Encoding encoding, bool intermediates, std::vector<HiddenStates> images)
      : state_(std::move(state)), encoding_(encoding), intermediates_(intermediates), images_(std::move(images)) {}

  Status run(Context& context) override {
    const size_t count = images_.size();
    if (count == 0) return {};
    const HeadConfig& config = state_.head->config();
    analyses_.resize(count);
    std::vector<Intermediates> copies;
    for (size_t i = 0; i < count && intermediates_; i++) {
      const size_t size = static_cast<size_t>(images_[i].rows * config.width);
      analyses_[i].context.resize(size);
      analyses_[i].attention.resize(size);
      copies.push_back({analyses_[i].context.data(), analyses_[i].attention.data()});
    }
    std::vector<std::shared_ptr<Analysis>> analyses(count);
    DESAP_TRY(state_.head->analyze(context, images_.data(), static_cast<int64_t>(count), encoding_,
                                   intermediates_ ? copies.data() : nullptr, analyses.data()));
    for (size_t i = 0; i < count; i++) {
      const HiddenStates& hidden = images_[i];
      AnalysisObject::State& made = analyses_[i];
      made.executor = state_.executor;
      made.half = hidden.half;
      const char* begin = static_cast<const char*>(hidden.data);
      const char* end = begin + hidden.rows * config.width * (hidden.half ? sizeof(uint16_t) : sizeof(float));
      const char* features = static_cast<const char*>(analyses[i]->features());
      made.analysis = std::move(analyses[i]);
      made.features = features >= begin && features < end ? begin : features;
    }
    return {};
  }

  Napi::Value finish(Napi::Env env, Napi::Object result) override {
    for (size_t i = 0; i < analyses_.size(); i++) {
      analyses_[i].waited = waited / static_cast<double>(analyses_.size());
      put(result, i, construct<AnalysisObject>(env, Environment::of(env).analysis, std::move(analyses_[i])));
    }
    return result;
  }

 private:
  const HeadObject::State state_;
  const Encoding encoding_;
  const bool intermediates_;
  const std::vector<HiddenStates> images_;
  std::vector<AnalysisObject::State> analyses_;
};

}  // namespace

Napi::Value create_head_object(Napi::Env env, const std::shared_ptr<Executor>& executor, const Napi::Value& value) {
  executor->check_open();
  const Arguments arguments(value, "head");
  constexpr int64_t limit = 1 << 24;
  HeadConfig config;
  config.width = arguments.integer("width", 1, limit);
  config.heads = arguments.integer("heads", 1, config.width);
  config.projection_dim = arguments.integer("projectionDim", 1, limit);
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
  entries.push_back({arguments.vector("visualProjection"), config.projection_dim * width, &weights.visual_projection});

  MemoryReader reader(env, Access::held);
  std::vector<Hold> holds;
  for (const Entry& entry : entries) {
    Memory memory = reader.float32(entry.argument.name, entry.argument.data, entry.size);
    *entry.data = static_cast<const float*>(memory.data);
    holds.push_back(std::move(memory.hold));
  }
  auto job = std::make_unique<CreateJob>(executor, config, weights, std::move(holds));
  return executor->submit(env, {std::move(job), Napi::Object::New(env)});
}

Napi::Function HeadObject::define(Napi::Env env) {
  return Wrapped::define(env, "Head",
                         {method<&HeadObject::analyze>("analyze"), method<&HeadObject::prune>("prune"),
                          method<&HeadObject::dispose>("dispose")});
}

HeadObject::HeadObject(const Napi::CallbackInfo& info) : state_(constructed_from<HeadObject>(info)) {}

HeadObject::State HeadObject::state() const {
  if (!state_.head) throw disposed("head");
  state_.executor->check_open();
  return state_;
}

Napi::Value HeadObject::analyze(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const State mine = state();  // reading the arguments can run code that disposes this head
  const Images images(info[0], mine.head->config());
  const Arguments options(info[1], "options");
  const Encoding encoding = encoding_of(options);
  const bool intermediates = options.boolean("intermediates");
  const bool sync = info[2].ToBoolean();
  const Napi::Array result = Napi::Array::New(env, images.arguments.size());
  MemoryReader memory(env, sync ? Access::in_place : Access::held);
  auto job = std::make_unique<AnalyzeJob>(mine, encoding, intermediates, images.hold(memory));
  return mine.executor->execute(env, {std::move(job), result}, sync);
}

Napi::Value HeadObject::prune(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const State mine = state();
  const HeadConfig& config = mine.head->config();
  const Images images(info[0], config);
  const size_t count = images.arguments.size();
  const Encoding encoding = encoding_of(Arguments(info[1], "options"));
  if (!info[2].IsArray() || info[2].As<Napi::Array>().Length() != count)
    throw invalid("ERR_SHAPE", "requests", "another number", std::to_string(count) + ", one per image");
  const bool sync = info[3].ToBoolean();
  std::vector<Napi::Value> requests;
  std::vector<ImageShape> shapes;
  for (uint32_t i = 0; i < count; i++) {
    const MatrixArgument& image = images.arguments[i];
    requests.push_back(info[2].As<Napi::Array>().Get(i));
    shapes.push_back({image.rows - (config.class_token ? 1 : 0), config.width, config.projection_dim, image.half});
  }
  const Napi::Array results = Napi::Array::New(env, count);
  MemoryReader memory(env, sync ? Access::in_place : Access::held);
  std::vector<Pruning> asked = prunings(env, requests, shapes, memory, results);
  auto job = std::make_unique<PruneJob>(mine.executor, mine.head, encoding, images.hold(memory), std::move(asked));
  return mine.executor->execute(env, {std::move(job), results}, sync);
}

void HeadObject::dispose(const Napi::CallbackInfo&) { state_ = {}; }

}  // namespace desap
