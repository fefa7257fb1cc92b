#include "prune_job.h"

#include <utility>

#include "outputs.h"

namespace desap {
namespace {

// One request while its properties are read. It is not a Pruning yet: to read a property can run the caller's code, which
// can take memory away, so no memory is looked at before the last property of the last request.
struct Asked {
  MatrixArgument text, features, distances;
  VectorArgument end_of_text, task, saliency;
  bool maps = false, matrices = false;
  Pruning pruning;
};

Asked read_request(const Napi::Value& value, const ImageShape& image) {
  const Arguments arguments(value, "");
  Asked asked;
  PruneRequest& request = asked.pruning.request;
  asked.text = arguments.matrix_or_null("text");
  if (asked.text.given()) {
    expect_shape(asked.text, asked.text.rows, image.projection_dim);
    asked.end_of_text = arguments.vector_or_index("endOfText", asked.text.rows, &request.end_of_text_row);
  }
  asked.features = arguments.matrix_or_null("features");
  if (asked.features.given()) expect_shape(asked.features, image.patches, asked.features.cols);
  asked.distances = arguments.matrix_or_null("distances");
  if (asked.distances.given()) expect_shape(asked.distances, image.patches, asked.distances.cols);
  asked.task = arguments.vector_or_null("task");
  asked.saliency = arguments.vector_or_null("saliency");
  request.keep = arguments.integer("keep", 1, image.patches);
  request.task_keep = arguments.integer("taskKeep", 0, asked.text.given() || asked.task.given() ? request.keep : 0);
  request.alignment = alignment_of(arguments);
  request.lambda = arguments.number("lambda");
  request.merge = arguments.boolean("merge");
  request.complement = static_cast<Complement>(arguments.choice("complement", {"saliency", "diversity"}));
  asked.maps = arguments.boolean("maps");
  asked.matrices = arguments.boolean("matrices");
  if (asked.matrices && !asked.text.given()) throw invalid("ERR_VALUE", "matrices", "true without a text", "false");
  return asked;
}

// PruneOutput without its timings.
Napi::Object allocate(Napi::Env env, const ImageShape& image, Asked& asked) {
  Pruning& pruning = asked.pruning;
  const PruneRequest& request = pruning.request;
  PruneOutput& output = pruning.output;
  const auto add = [](const Napi::Object& object, const char* key, const auto& array) {
    put(object, key, array.value);
    return array.data;
  };
  Napi::Object result = Napi::Object::New(env);
  pruning.tokens_size = request.keep * (asked.features.given() ? asked.features.cols : image.width);
  if (asked.features.given() ? asked.features.half : image.half) {
    pruning.half_tokens = add(result, "tokens", new_halves(env, pruning.tokens_size));
  } else {
    output.tokens = add(result, "tokens", new_floats(env, pruning.tokens_size));
  }
  output.indices = add(result, "indices", new_ints(env, request.keep));
  output.source = add(result, "source", new_bytes(env, request.keep));
  output.assignment = add(result, "assignment", new_ints(env, image.patches));
  output.counts = add(result, "counts", new_ints(env, request.keep));
  put(result, "maps", env.Null());
  if (asked.maps) {
    Napi::Object maps = Napi::Object::New(env);
    put(maps, "task", env.Null());
    if (asked.text.given() || asked.task.given()) output.task = add(maps, "task", new_floats(env, image.patches));
    output.saliency = add(maps, "saliency", new_floats(env, image.patches));
    put(result, "maps", maps);
  }
  put(result, "matrices",
             new_matrices(env, asked.matrices, request.alignment, image.patches, asked.text.rows, &output.matrices));
  return result;
}

Pruning hold(MemoryReader& memory, const ImageShape& image, Asked asked) {
  Pruning& pruning = asked.pruning;
  if (asked.text.given()) pruning.text = FloatInput(memory, asked.text);
  if (asked.features.given()) pruning.features = FloatInput(memory, asked.features);
  if (asked.distances.given()) pruning.distances = FloatInput(memory, asked.distances);
  pruning.end_of_text = VectorInput(memory, asked.end_of_text, image.projection_dim);
  pruning.task = VectorInput(memory, asked.task, image.patches);
  pruning.saliency = VectorInput(memory, asked.saliency, image.patches);
  return std::move(pruning);
}

}  // namespace

Status Pruning::widen(Context& context) {
  for (const auto& [input, matrix] : {std::pair{&text, &request.text}, std::pair{&features, &request.features},
                                       std::pair{&distances, &request.distances}}) {
    DESAP_TRY(input->widen(context));
    *matrix = input->matrix();
  }
  request.end_of_text = end_of_text.data();
  request.task = task.data();
  request.saliency = saliency.data();
  if (half_tokens) {
    wide_tokens.reset(new float[static_cast<size_t>(tokens_size)]);
    output.tokens = wide_tokens.get();
  }
  return {};
}

Status Pruning::narrow(Context& context) const {
  return half_tokens ? convert_to_half(context, wide_tokens.get(), tokens_size, half_tokens) : Status{};
}

// All properties, then the arrays of the results, then the memory.
std::vector<Pruning> prunings(Napi::Env env, const std::vector<Napi::Value>& requests, const std::vector<ImageShape>& images,
                              MemoryReader& memory, Napi::Array results) {
  std::vector<Asked> asked;
  for (size_t i = 0; i < requests.size(); i++) asked.push_back(read_request(requests[i], images[i]));
  for (size_t i = 0; i < requests.size(); i++) put(results, i, allocate(env, images[i], asked[i]));
  std::vector<Pruning> list;
  for (size_t i = 0; i < requests.size(); i++) list.push_back(hold(memory, images[i], std::move(asked[i])));
  return list;
}

PruneJob::PruneJob(std::shared_ptr<Executor> executor, std::vector<std::shared_ptr<const Analysis>> analyses,
                   std::vector<Pruning> prunings)
    : executor_(std::move(executor)), analyses_(std::move(analyses)), prunings_(std::move(prunings)), prune_timings_(prunings_.size()) {
  for (const auto& analysis : analyses_) analyze_timings_.push_back(analysis->timings());
}

PruneJob::PruneJob(std::shared_ptr<Executor> executor, std::shared_ptr<const Head> head, Encoding encoding,
                   std::vector<HiddenStates> images, std::vector<Pruning> prunings)
    : executor_(std::move(executor)),
      head_(std::move(head)),
      encoding_(encoding),
      images_(std::move(images)),
      prunings_(std::move(prunings)),
      analyze_timings_(images_.size()),
      prune_timings_(images_.size()) {}

Status PruneJob::run(Context& context) {
  if (prunings_.empty()) return {};
  std::vector<PruneRequest> requests;
  std::vector<PruneOutput> outputs;
  for (Pruning& pruning : prunings_) {
    DESAP_TRY(pruning.widen(context));
    requests.push_back(pruning.request);
    outputs.push_back(pruning.output);
  }
  for (size_t i = 0; i < analyses_.size(); i++) {
    Status status = analyses_[i]->prune(context, requests[i], outputs[i], &prune_timings_[i]);
    if (!status.good() && analyses_.size() > 1) status.image = static_cast<int64_t>(i);
    DESAP_TRY(status);
  }
  if (head_) {
    DESAP_TRY(head_->prune(context, images_.data(), static_cast<int64_t>(images_.size()), encoding_, requests.data(),
                           outputs.data(), analyze_timings_.data(), prune_timings_.data()));
  }
  for (const Pruning& pruning : prunings_) DESAP_TRY(pruning.narrow(context));
  return {};
}

Napi::Value PruneJob::finish(Napi::Env env, Napi::Object results) {
  for (uint32_t i = 0; i < prunings_.size(); i++) {
    Napi::Object timings = Napi::Object::New(env);
    set_timings(timings, analyze_timings_[i]);
    set_timings(timings, prune_timings_[i]);
    set_waiting(timings, waited / static_cast<double>(prunings_.size()));
    put(results.Get(i).As<Napi::Object>(), "timings", timings);
  }
  return results;
}

void set_timings(Napi::Object object, const AnalyzeTimings& timings) {
  put(object, "normalize", timings.normalize);
  put(object, "project", timings.project);
  put(object, "attention", timings.attention);
  put(object, "saliency", timings.saliency);
  put(object, "readOut", timings.read_out);
}

void set_waiting(Napi::Object object, double milliseconds) { put(object, "waiting", milliseconds); }

void set_timings(Napi::Object object, const PruneTimings& timings) {
  put(object, "align", timings.align);
  put(object, "select", timings.select);
  put(object, "merge", timings.merge);
}

}  // namespace desap
