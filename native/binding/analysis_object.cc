#include "analysis_object.h"

#include <algorithm>
#include <utility>

#include "arguments.h"
#include "errors.h"
#include "outputs.h"
#include "question.h"
#include "wrapped.h"

namespace desap {
namespace {

class PruneJob : public Job {
 public:
  PruneJob(std::shared_ptr<const AnalysisRecord> record, Question question)
      : record_(std::move(record)), question_(std::move(question)) {}

  Status run(Context& context) override {
    DESAP_TRY(question_.widen(context));
    DESAP_TRY(record_->analysis->prune(context, question_.request(), question_.output(), &timings_));
    return question_.narrow(context);
  }

  Napi::Value finish(Napi::Env env, Napi::Object prepared) override {
    Napi::Object timings = Napi::Object::New(env);
    set_timings(timings, timings_);
    prepared.Set("timings", timings);
    return prepared;
  }

 private:
  const std::shared_ptr<const AnalysisRecord> record_;
  Question question_;
  PruneTimings timings_{};
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
    const std::shared_ptr<const AnalysisRecord> mine = record_;  // reading the arguments can run code that disposes it
    QuestionArguments question(info[0], {patches_, width_, mine->embedding, mine->half});
    const bool sync = info[1].ToBoolean();
    const Napi::Object result = question.allocate(env);
    MemoryReader memory(env, sync ? Access::in_place : Access::held);
    return mine->executor->execute(env, {std::make_unique<PruneJob>(mine, question.hold(memory)), result}, sync);
  });
}

Napi::Value AnalysisObject::embedding(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const AnalysisRecord& mine = record();
    const auto read = [&](float* out) { return mine.analysis->read_embedding(out); };
    return copy_of(info.Env(), tokens_ * mine.embedding, read);
  });
}

Napi::Value AnalysisObject::saliency(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const AnalysisRecord& mine = record();
    return copy_of(info.Env(), patches_, [&](float* out) { return mine.analysis->read_saliency(out); });
  });
}

Napi::Value AnalysisObject::intermediates(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    if (record().context.empty()) return env.Null();
    Napi::Object copies = Napi::Object::New(env);
    copies.Set("context", copy_of(env, record().context));
    copies.Set("attention", copy_of(env, record().attention));
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
  set_timings(timings, timings_);
  return timings;
}

}  // namespace desap
