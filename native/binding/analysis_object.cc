#include "analysis_object.h"

#include <algorithm>
#include <string>
#include <utility>

#include "arguments.h"
#include "environment.h"
#include "errors.h"
#include "outputs.h"
#include "wrapped.h"

namespace desap {
namespace {

// Makes an analysis of parts.
class PartsJob : public Job {
 public:
  PartsJob(std::shared_ptr<Executor> executor, FloatInput patch_embeddings, VectorInput global, VectorInput saliency,
           const MatrixArgument& features, Memory memory)
      : executor_(std::move(executor)),
        patch_embeddings_(std::move(patch_embeddings)),
        global_(std::move(global)),
        saliency_(std::move(saliency)),
        features_(std::move(memory)),
        half_(features.half),
        width_(features.cols) {}

  Status run(Context& context) override {
    DESAP_TRY(patch_embeddings_.widen(context));
    return Analysis::from(context,
                          {patch_embeddings_.matrix(), global_.data(), saliency_.data(), features_.data, half_, width_, features_.hold},
                          &analysis_);
  }

  Napi::Value finish(Napi::Env env, Napi::Object) override {
    const void* features = analysis_->features();
    return construct<AnalysisObject>(env, Environment::of(env).analysis, {executor_, std::move(analysis_), half_, features, {}, {}, 0});
  }

 private:
  const std::shared_ptr<Executor> executor_;
  FloatInput patch_embeddings_;
  VectorInput global_, saliency_;
  Memory features_;
  const bool half_;
  const int64_t width_;
  std::shared_ptr<Analysis> analysis_;
};

// A new array that `read` fills.
template <class Read>
Napi::Value copy_of(Napi::Env env, int64_t size, const Read& read) {
  const Output<float> copy = new_floats(env, size);
  const Status status = read(copy.data);
  if (!status.good()) throw from_status(status);
  return copy.value;
}

Napi::Value copy_of(Napi::Env env, const std::vector<float>& values) {
  return copy_of(env, static_cast<int64_t>(values.size()), [&](float* out) -> Status {
    std::copy(values.begin(), values.end(), out);
    return {};
  });
}

// The one result of a pruning.
class PruneOneJob : public PruneJob {
 public:
  using PruneJob::PruneJob;
  Napi::Value finish(Napi::Env env, Napi::Object results) override {
    return PruneJob::finish(env, results).As<Napi::Object>().Get(uint32_t{0});
  }
};

Napi::Value number(const Napi::CallbackInfo& info, int64_t value) {
  return Napi::Number::New(info.Env(), static_cast<double>(value));
}

}  // namespace

Napi::Value create_analysis_object(Napi::Env env, const std::shared_ptr<Executor>& executor, const Napi::Value& value, bool sync) {
  executor->check_open();
  const Arguments arguments(value, "");
  const MatrixArgument patch_embeddings = arguments.matrix("patchEmbeddings"), features = arguments.matrix("features");
  const VectorArgument global = arguments.vector_or_null("global"), saliency = arguments.vector("saliency");
  const int64_t patches = patch_embeddings.rows;
  expect_shape(features, patches, features.cols);
  MemoryReader memory(env, sync ? Access::in_place : Access::held);
  auto job = std::make_unique<PartsJob>(executor, FloatInput(memory, patch_embeddings),
                                        VectorInput(memory, global, patch_embeddings.cols),
                                        VectorInput(memory, saliency, patches), features, memory.matrix(features));
  return executor->execute(env, {std::move(job), Napi::Object::New(env)}, sync);
}

Napi::Value prune_analyses(Napi::Env env, const std::shared_ptr<Executor>& executor, const Napi::Value& values,
                           const Napi::Value& requests, bool sync) {
  executor->check_open();
  if (!values.IsArray()) throw invalid("ERR_DTYPE", "analyses", "something else", "an array of analyses");
  const Napi::Array list = values.As<Napi::Array>();
  const uint32_t count = list.Length();  // reading an element can change it
  if (!requests.IsArray() || requests.As<Napi::Array>().Length() != count)
    throw invalid("ERR_SHAPE", "requests", "another number", std::to_string(count) + ", one per analysis");
  std::vector<std::shared_ptr<const Analysis>> analyses;
  std::vector<ImageShape> shapes;
  std::vector<Napi::Value> asked;
  for (uint32_t i = 0; i < count; i++) {
    const AnalysisObject* const one = AnalysisObject::of(list.Get(i));
    const std::string name = "analyses[" + std::to_string(i) + "]";
    if (!one) throw invalid("ERR_DTYPE", name, "something else", "an analysis");
    analyses.push_back(one->shared());
    if (one->executor() != executor) throw invalid("ERR_VALUE", name, "an analysis of another device", "one of this device");
    shapes.push_back(one->shape());
    asked.push_back(requests.As<Napi::Array>().Get(i));
  }
  const Napi::Array results = Napi::Array::New(env, asked.size());
  MemoryReader memory(env, sync ? Access::in_place : Access::held);
  std::vector<Pruning> asked_of = prunings(env, asked, shapes, memory, results);
  auto job = std::make_unique<PruneJob>(executor, std::move(analyses), std::move(asked_of));
  return executor->execute(env, {std::move(job), results}, sync);
}

Napi::Function AnalysisObject::define(Napi::Env env) {
  return Wrapped::define(env, "Analysis",
                         {method<&AnalysisObject::prune>("prune"),
                          method<&AnalysisObject::patch_embeddings>("patchEmbeddings"),
                          method<&AnalysisObject::global>("global"),
                          method<&AnalysisObject::saliency>("saliency"),
                          method<&AnalysisObject::intermediates>("intermediates"),
                          method<&AnalysisObject::dispose>("dispose"),
                          accessor<&AnalysisObject::rows>("rows"),
                          accessor<&AnalysisObject::patches>("patches"),
                          accessor<&AnalysisObject::width>("width"),
                          accessor<&AnalysisObject::projection_dim>("projectionDim"),
                          accessor<&AnalysisObject::timings>("timings"),
                          accessor<&AnalysisObject::features_address>("featuresAddress")});
}

AnalysisObject::AnalysisObject(const Napi::CallbackInfo& info) : state_(constructed_from<AnalysisObject>(info)) {
  const Analysis& analysis = *state_.analysis;
  rows_ = analysis.rows();
  patches_ = analysis.patches();
  width_ = analysis.width();
  projection_dim_ = analysis.projection_dim();
  timings_ = analysis.timings();
  waited_ = state_.waited;
  address_ = reinterpret_cast<uintptr_t>(state_.features);
  const int64_t floats = rows_ * projection_dim_ + patches_ + patches_ * width_;
  memory_ = ExternalMemory(info.Env(), (floats + static_cast<int64_t>(state_.context.size() + state_.attention.size())) * 4);
}

std::shared_ptr<const Analysis> AnalysisObject::shared() const {
  if (!state_.analysis) throw disposed("analysis");
  return state_.analysis;
}

Napi::Value AnalysisObject::prune(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  // Reading the arguments can run code that disposes this object.
  const std::shared_ptr<const Analysis> analysis = shared();
  const std::shared_ptr<Executor> executor = state_.executor;
  const ImageShape mine = shape();
  executor->check_open();
  const bool sync = info[1].ToBoolean();
  const Napi::Array results = Napi::Array::New(env, 1);
  MemoryReader memory(env, sync ? Access::in_place : Access::held);
  auto job = std::make_unique<PruneOneJob>(executor, std::vector{analysis}, prunings(env, {info[0]}, {mine}, memory, results));
  return executor->execute(env, {std::move(job), results}, sync);
}

Napi::Value AnalysisObject::patch_embeddings(const Napi::CallbackInfo& info) {
  const std::shared_ptr<const Analysis> mine = shared();
  return copy_of(info.Env(), patches_ * projection_dim_, [&](float* out) { return mine->read_patch_embeddings(out); });
}

Napi::Value AnalysisObject::global(const Napi::CallbackInfo& info) {
  const std::shared_ptr<const Analysis> mine = shared();
  return copy_of(info.Env(), projection_dim_, [&](float* out) { return mine->read_global(out); });
}

Napi::Value AnalysisObject::saliency(const Napi::CallbackInfo& info) {
  const std::shared_ptr<const Analysis> mine = shared();
  return copy_of(info.Env(), patches_, [&](float* out) { return mine->read_saliency(out); });
}

Napi::Value AnalysisObject::intermediates(const Napi::CallbackInfo& info) {
  shared();
  if (state_.context.empty()) return info.Env().Null();
  const Napi::Object copies = Napi::Object::New(info.Env());
  put(copies, "context", copy_of(info.Env(), state_.context));
  put(copies, "attention", copy_of(info.Env(), state_.attention));
  return copies;
}

void AnalysisObject::dispose(const Napi::CallbackInfo&) {
  state_ = {};
  memory_ = {};
}

Napi::Value AnalysisObject::rows(const Napi::CallbackInfo& info) { return number(info, rows_); }
Napi::Value AnalysisObject::patches(const Napi::CallbackInfo& info) { return number(info, patches_); }
Napi::Value AnalysisObject::width(const Napi::CallbackInfo& info) { return number(info, width_); }
Napi::Value AnalysisObject::projection_dim(const Napi::CallbackInfo& info) { return number(info, projection_dim_); }
Napi::Value AnalysisObject::features_address(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), address_);
}

Napi::Value AnalysisObject::timings(const Napi::CallbackInfo& info) {
  Napi::Object timings = Napi::Object::New(info.Env());
  set_timings(timings, timings_);
  set_waiting(timings, waited_);
  return timings;
}

}  // namespace desap
