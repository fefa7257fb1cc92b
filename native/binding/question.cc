#include "question.h"

#include <utility>

#include "outputs.h"

namespace desap {

Status Question::widen(Context& context) {
  DESAP_TRY(text_.widen(context));
  request_.text = text_.matrix();
  request_.query = query_.data();
  request_.saliency = saliency_.data();
  if (has_features_) {
    DESAP_TRY(features_.widen(context));
    request_.features = features_.matrix();
  }
  if (half_tokens_) {
    wide_tokens_.reset(new float[static_cast<size_t>(token_size_)]);
    output_.tokens = wide_tokens_.get();
  }
  return {};
}

Status Question::narrow(Context& context) const {
  return half_tokens_ ? convert_to_half(context, wide_tokens_.get(), token_size_, half_tokens_) : Status{};
}

QuestionArguments::QuestionArguments(const Napi::Value& value, const ImageShape& image) : image_(image) {
  const Arguments arguments(value, "");
  text_ = arguments.matrix("text");
  features_ = arguments.matrix_or_null("features");
  query_ = arguments.vector_or_null("query");
  saliency_ = arguments.vector_or_null("saliency");
  PruneRequest& request = question_.request_;
  request.end_of_text = query_.given() ? -1 : arguments.integer("endOfText", 0, text_.rows - 1);
  request.keep = arguments.integer("keep", 1, image.patches);
  request.task_keep = arguments.integer("taskKeep", 0, request.keep);
  request.alignment = alignment_of(arguments);
  request.lambda = arguments.number("lambda");
  request.merge = arguments.boolean("merge");
  matrices_ = arguments.boolean("matrices");
  expect_shape(text_, text_.rows, image.embedding);
  if (features_.given()) expect_shape(features_, image.patches, features_.cols);
}

Napi::Object QuestionArguments::allocate(Napi::Env env) {
  const PruneRequest& request = question_.request_;
  PruneOutput& output = question_.output_;
  const bool half = features_.given() ? features_.half : image_.half;
  const int64_t size = request.keep * (features_.given() ? features_.cols : image_.width);
  question_.token_size_ = size;
  Napi::Object result = Napi::Object::New(env);
  const auto add = [&](const char* key, const auto& array) {
    result.Set(key, array.value);
    return array.data;
  };
  if (half) {
    question_.half_tokens_ = add("tokens", new_halves(env, size));
  } else {
    output.tokens = add("tokens", new_floats(env, size));
  }
  output.indices = add("indices", new_ints(env, request.keep));
  output.source = add("source", new_bytes(env, request.keep));
  output.assignment = add("assignment", new_ints(env, image_.patches));
  output.counts = add("counts", new_ints(env, request.keep));
  output.task = add("task", new_floats(env, image_.patches));
  result.Set("matrices",
             new_matrices(env, matrices_, request.alignment, image_.patches, text_.rows, &output.matrices));
  return result;
}

Question QuestionArguments::hold(MemoryReader& memory) {
  question_.text_ = FloatInput(memory, text_);
  question_.query_ = VectorInput(memory, query_, image_.embedding);
  question_.saliency_ = VectorInput(memory, saliency_, image_.patches);
  question_.has_features_ = features_.given();
  if (features_.given()) question_.features_ = FloatInput(memory, features_);
  return std::move(question_);
}

void set_timings(Napi::Object object, const AnalyzeTimings& timings) {
  object.Set("normalize", timings.normalize);
  object.Set("project", timings.project);
  object.Set("attention", timings.attention);
  object.Set("saliency", timings.saliency);
  object.Set("readOut", timings.read_out);
}

void set_timings(Napi::Object object, const PruneTimings& timings) {
  object.Set("align", timings.align);
  object.Set("topK", timings.top_k);
  object.Set("merge", timings.merge);
}

}  // namespace desap
