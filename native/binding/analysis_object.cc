#include "analysis_object.h"

#include <cstring>
#include <utility>

#include "arguments.h"
#include "errors.h"
#include "outputs.h"
#include "wrapped.h"

namespace desap {
namespace {

class PruneJob : public Job {
 public:
  std::shared_ptr<const AnalysisRecord> record;
  PruneRequest request{};
  PruneOutput output{};
  FloatInput text, features;
  VectorInput query, saliency;
  bool has_features = false;
  uint16_t* half_tokens = nullptr;  // where the tokens go in place of output.tokens
  int64_t token_size = 0;

  Outcome run(Context& context) override { return {prune(context)}; }
  Napi::Value finish(Napi::Env env, Napi::Object prepared) override {
    Napi::Object timings = Napi::Object::New(env);
    timings.Set("align", timings_.align);
    timings.Set("topK", timings_.top_k);
    timings.Set("merge", timings_.merge);
    prepared.Set("timings", timings);
    return prepared;
  }

 private:
  Status prune(Context& context) {
    DESAP_TRY(text.widen(context));
    request.text = text.matrix();
    request.query = query.data();
    request.saliency = saliency.data();
    if (has_features) {
      DESAP_TRY(features.widen(context));
      request.features = features.matrix();
    }
    const Analysis& analysis = *record->analysis;
    if (!half_tokens) return analysis.prune(context, request, output, &timings_);
    const std::unique_ptr<float[]> tokens(new float[static_cast<size_t>(token_size)]);
    output.tokens = tokens.get();
    DESAP_TRY(analysis.prune(context, request, output, &timings_));
    return convert_to_half(context, tokens.get(), token_size, half_tokens);
  }

  PruneTimings timings_{};
};

Napi::Value copy_of(Napi::Env env, const float* data, int64_t size) {
  const Output<float> copy = new_floats(env, size);
  std::memcpy(copy.data, data, static_cast<size_t>(size) * sizeof(float));
  return copy.value;
}

}  // namespace

Napi::Function AnalysisObject::define(Napi::Env env) {
  return DefineClass(
      env, "Analysis",
      {InstanceMethod<&AnalysisObject::prune>("prune"), InstanceMethod<&AnalysisObject::embedding>("embedding"),
       InstanceMethod<&AnalysisObject::saliency>("saliency"),
       InstanceMethod<&AnalysisObject::intermediates>("intermediates"),
       InstanceMethod<&AnalysisObject::dispose>("dispose"), InstanceAccessor<&AnalysisObject::tokens>("tokens"),
       InstanceAccessor<&AnalysisObject::patches>("patches"), InstanceAccessor<&AnalysisObject::width>("width"),
       InstanceAccessor<&AnalysisObject::timings>("timings"),
       InstanceAccessor<&AnalysisObject::features_address>("featuresAddress")});
}

AnalysisObject::AnalysisObject(const Napi::CallbackInfo& info)
    : ObjectWrap(info), record_(std::make_shared<AnalysisRecord>(constructed_from<AnalysisRecord>(info))) {
  const Analysis& analysis = *record_->analysis;
  tokens_ = analysis.tokens();
  patches_ = analysis.patches();
  width_ = analysis.width();
  timings_ = analysis.timings();
  address_ = reinterpret_cast<uintptr_t>(record_->features);
  const int64_t floats = tokens_ * record_->embedding + patches_ + patches_ * width_;
  external_bytes_ = (floats + static_cast<int64_t>(record_->context.size() + record_->attention.size())) * 4;
  Napi::MemoryManagement::AdjustExternalMemory(info.Env(), external_bytes_);
}

AnalysisObject::~AnalysisObject() { release(); }

void AnalysisObject::release() {
  if (!record_) return;
  record_.reset();
  Napi::MemoryManagement::AdjustExternalMemory(Env(), -external_bytes_);
}

const AnalysisRecord& AnalysisObject::record() const {
  if (!record_) throw disposed("analysis");
  return *record_;
}

Napi::Value AnalysisObject::prune(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    record().executor->check_open();
    auto job = std::make_unique<PruneJob>();
    job->record = record_;  // reading the arguments can run code that disposes this analysis
    const AnalysisRecord& mine = *job->record;

    const Arguments arguments(info[0], "");
    const MatrixArgument text = arguments.matrix("text"), features = arguments.matrix_or_null("features");
    const VectorArgument query = arguments.vector_or_null("query"), saliency = arguments.vector_or_null("saliency");
    PruneRequest& request = job->request;
    request.end_of_text = query.given() ? -1 : arguments.integer("endOfText", 0, text.rows - 1);
    request.keep = arguments.integer("keep", 1, patches_);
    request.task_keep = arguments.integer("taskKeep", 0, request.keep);
    request.alignment = alignment_of(arguments);
    request.lambda = arguments.number("lambda");
    request.merge = arguments.boolean("merge");
    const bool wanted = arguments.boolean("matrices");
    const bool sync = info[1].ToBoolean();
    expect_shape(text, text.rows, mine.embedding);
    if (features.given()) expect_shape(features, patches_, features.cols);

    const bool half = features.given() ? features.half : mine.half;
    job->token_size = request.keep * (features.given() ? features.cols : width_);
    PruneOutput& output = job->output;
    Napi::Object result = Napi::Object::New(env);
    const auto add = [&](const char* key, const auto& array) {
      result.Set(key, array.value);
      return array.data;
    };
    if (half) {
      job->half_tokens = add("tokens", new_halves(env, job->token_size));
    } else {
      output.tokens = add("tokens", new_floats(env, job->token_size));
    }
    output.indices = add("indices", new_ints(env, request.keep));
    output.source = add("source", new_bytes(env, request.keep));
    output.assignment = add("assignment", new_ints(env, patches_));
    output.counts = add("counts", new_ints(env, request.keep));
    output.task = add("task", new_floats(env, patches_));
    result.Set("matrices", new_matrices(env, wanted, request.alignment, patches_, text.rows, &output.matrices));

    MemoryReader memory(env, sync ? Access::in_place : Access::held);
    job->text = FloatInput(memory, text);
    job->query = VectorInput(memory, query, mine.embedding);
    job->saliency = VectorInput(memory, saliency, patches_);
    job->has_features = features.given();
    if (features.given()) job->features = FloatInput(memory, features);
    return mine.executor->execute(env, {std::move(job), result}, sync);
  });
}

Napi::Value AnalysisObject::embedding(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return copy_of(info.Env(), record().analysis->embedding(), tokens_ * record().embedding); });
}

Napi::Value AnalysisObject::saliency(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return copy_of(info.Env(), record().analysis->saliency(), patches_); });
}

Napi::Value AnalysisObject::intermediates(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    if (record().context.empty()) return env.Null();
    Napi::Object copies = Napi::Object::New(env);
    copies.Set("context", copy_of(env, record().context.data(), tokens_ * width_));
    copies.Set("attention", copy_of(env, record().attention.data(), tokens_ * width_));
    return copies;
  });
}

void AnalysisObject::dispose(const Napi::CallbackInfo&) { release(); }

Napi::Value AnalysisObject::tokens(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(tokens_));
}
Napi::Value AnalysisObject::patches(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(patches_));
}
Napi::Value AnalysisObject::width(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(width_));
}
Napi::Value AnalysisObject::features_address(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), address_);
}

Napi::Value AnalysisObject::timings(const Napi::CallbackInfo& info) {
  Napi::Object timings = Napi::Object::New(info.Env());
  timings.Set("normalize", timings_.normalize);
  timings.Set("project", timings_.project);
  timings.Set("attention", timings_.attention);
  timings.Set("saliency", timings_.saliency);
  timings.Set("readOut", timings_.read_out);
  return timings;
}

}  // namespace desap
