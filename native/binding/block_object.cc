#include "block_object.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "environment.h"
#include "errors.h"
#include "outputs.h"
#include "prune_job.h"
#include "wrapped.h"

namespace desap {
namespace {

class CreateJob : public Job {
 public:
  CreateJob(const std::shared_ptr<Executor>& executor, const BlockConfig& config, const BlockWeights& weights, std::vector<Hold> holds)
      : executor_(executor), config_(config), weights_(weights), holds_(std::move(holds)) {}

  Status run(Context& context) override { return Block::create(context, config_, weights_, &block_); }

  Napi::Value finish(Napi::Env env, Napi::Object) override {
    return construct<BlockObject>(env, Environment::of(env).block, {executor_, block_});
  }

 private:
  const std::shared_ptr<Executor> executor_;
  const BlockConfig config_;
  const BlockWeights weights_;
  const std::vector<Hold> holds_;  // of the weights
  std::shared_ptr<Block> block_;
};

// One sequence while its properties are read (arguments.h says why that comes first).
struct Asked {
  Asked(const Napi::Value& value, const std::string& name, const BlockConfig& config) {
    const Arguments arguments(value, name);
    hidden = arguments.matrix("hidden");
    expect_shape(hidden, hidden.rows, config.width);
    rotary = arguments.rotary_or_null("rotary");
    if (rotary.given()) expect_halves(name + ".rotary", config.width / config.heads);
    unit = arguments.vector_or_null("unit");
    if (unit.given()) units = arguments.integer("units", 1, hidden.rows);
    attention = arguments.vector_or_null("attention");
    self_attention = arguments.vector_or_null("selfAttention");
  }

  MatrixArgument hidden;
  RotaryArgument rotary;
  VectorArgument unit, attention, self_attention;
  int64_t units = 0;
};

// One sequence as the job has it: what it holds, what it reads, and what it fills.
struct Sequence {
  Memory hidden, unit;
  RotaryInput rotary;
  VectorOutput attention, self_attention;
  BlockStates states{};
  BlockOutput output{};
};

// BlockOutput of driver.ts without its timings, and where each part lies.
Napi::Object allocate(Napi::Env env, const BlockConfig& config, const Asked& asked, BlockOutput* output) {
  const int64_t rows = asked.hidden.rows;
  Napi::Object result = Napi::Object::New(env);
  const auto add = [&](const Napi::Object& object, const char* key, int64_t size) {
    const Output<float> array = new_floats(env, size);
    put(object, key, array.value);
    return array.data;
  };
  output->saliency = add(result, "saliency", rows);
  put(result, "unitSaliency", env.Null());
  if (asked.unit.given()) output->unit_saliency = add(result, "unitSaliency", asked.units);
  put(result, "siglip", env.Null());
  if (config.mlp_width > 0) {
    Napi::Object siglip = Napi::Object::New(env);
    output->embeddings = add(siglip, "embeddings", rows * config.width);
    output->global = add(siglip, "global", config.width);
    output->probe_saliency = add(siglip, "probeSaliency", rows);
    put(result, "siglip", siglip);
  }
  return result;
}

Sequence hold(Napi::Env env, MemoryReader& memory, const BlockConfig& config, const Asked& asked, const BlockOutput& output) {
  Sequence sequence;
  const int64_t rows = asked.hidden.rows;
  sequence.output = output;
  sequence.hidden = memory.matrix(asked.hidden);
  sequence.states.hidden = {sequence.hidden.data, asked.hidden.half, rows, sequence.hidden.hold};
  sequence.rotary = RotaryInput(memory, asked.rotary, rows * (config.width / config.heads));
  sequence.states.rotary = sequence.rotary.rotary();
  if (asked.unit.given()) {
    sequence.unit = read_units(env, asked.unit, rows, asked.units);
    sequence.states.unit = static_cast<const int32_t*>(sequence.unit.data);
    sequence.states.units = asked.units;
  }
  sequence.attention = VectorOutput(memory, asked.attention, rows * config.width);
  sequence.self_attention = VectorOutput(memory, asked.self_attention, rows * config.width);
  sequence.output.attention = sequence.attention.data();
  sequence.output.self_attention = sequence.self_attention.data();
  return sequence;
}

struct Range {
  const char* begin;
  int64_t bytes;
  bool overlaps(const Range& other) const { return begin < other.begin + other.bytes && other.begin < begin + bytes; }
};

// Rows are written while others are still to be read.
void expect_apart(const std::vector<Asked>& asked, const std::vector<Sequence>& sequences) {
  std::vector<Range> read, written;
  for (size_t i = 0; i < sequences.size(); i++) {
    const MatrixArgument& matrix = asked[i].hidden;
    read.push_back({static_cast<const char*>(sequences[i].hidden.data), matrix.size() * (matrix.half ? 2 : 4)});
  }
  const auto meets = [](const std::vector<Range>& ranges, const Range& range) {
    return std::any_of(ranges.begin(), ranges.end(), [&](const Range& other) { return range.overlaps(other); });
  };
  const auto add = [&](const float* rows, int64_t size, const std::string& name) {
    if (!rows) return;
    const Range range{reinterpret_cast<const char*>(rows), size * 4};
    if (meets(read, range)) throw invalid("ERR_VALUE", name, "memory of hidden states", "memory of its own");
    if (meets(written, range)) throw invalid("ERR_VALUE", name, "memory of another attention", "memory of its own");
    written.push_back(range);
  };
  for (size_t i = 0; i < sequences.size(); i++) {
    add(sequences[i].output.attention, asked[i].hidden.size(), asked[i].attention.name);
    add(sequences[i].output.self_attention, asked[i].hidden.size(), asked[i].self_attention.name);
  }
}

class AnalyzeJob : public Job {
 public:
  AnalyzeJob(BlockObject::State state, Encoding encoding, std::vector<Sequence> sequences)
      : state_(std::move(state)), encoding_(encoding), sequences_(std::move(sequences)), timings_(sequences_.size()) {}

  Status run(Context& context) override {
    if (sequences_.empty()) return {};
    std::vector<BlockStates> images;
    std::vector<BlockOutput> outputs;
    for (const Sequence& sequence : sequences_) {
      images.push_back(sequence.states);
      outputs.push_back(sequence.output);
    }
    return state_.block->analyze(context, images.data(), static_cast<int64_t>(images.size()), encoding_, outputs.data(), timings_.data());
  }

  Napi::Value finish(Napi::Env env, Napi::Object results) override {
    for (uint32_t i = 0; i < timings_.size(); i++) {
      sequences_[i].attention.deliver();
      sequences_[i].self_attention.deliver();
      Napi::Object timings = Napi::Object::New(env);
      set_timings(timings, timings_[i]);
      set_waiting(timings, waited / static_cast<double>(timings_.size()));
      put(results.Get(i).As<Napi::Object>(), "timings", timings);
    }
    return results;
  }

 private:
  const BlockObject::State state_;
  const Encoding encoding_;
  const std::vector<Sequence> sequences_;
  std::vector<BlockTimings> timings_;
};

}  // namespace

Napi::Value create_block_object(Napi::Env env, const std::shared_ptr<Executor>& executor, const Napi::Value& value) {
  executor->check_open();
  const Arguments arguments(value, "block");
  constexpr int64_t limit = 1 << 24;
  BlockConfig config;
  config.width = arguments.integer("width", 1, limit);
  config.heads = arguments.integer("heads", 1, config.width);
  config.norm = static_cast<Norm>(arguments.choice("norm", {"layer", "rms"}));
  config.epsilon = arguments.number("epsilon");
  expect_divides("block.heads", config.heads, config.width);

  BlockWeights weights{};
  struct Entry {
    VectorArgument argument;
    int64_t size;
    const float** data;
  };
  std::vector<Entry> entries;
  const auto layer = [&](const char* key, int64_t size, const float** weight, const float** bias) {
    const Arguments pair = arguments.object(key);
    entries.push_back({pair.vector("weight"), size, weight});
    const VectorArgument given = pair.vector_or_null("bias");
    if (given.given()) entries.push_back({given, config.width, bias});
  };
  const int64_t width = config.width, square = width * width;
  layer("norm1", width, &weights.norm_weight, &weights.norm_bias);
  if (config.norm == Norm::rms && entries.size() > 1) throw invalid("ERR_VALUE", "block.norm1.bias", "a bias", "null for the norm 'rms'");
  layer("q", square, &weights.q_weight, &weights.q_bias);
  layer("k", square, &weights.k_weight, &weights.k_bias);
  layer("v", square, &weights.v_weight, &weights.v_bias);
  layer("out", square, &weights.out_weight, &weights.out_bias);
  config.mlp_width = 0;
  if (const std::optional<Arguments> siglip = arguments.object_or_null("siglip")) {
    const Arguments& head = *siglip;
    const int64_t inner = config.mlp_width = head.integer("mlpWidth", 1, limit);
    const auto layer_of_head = [&](const char* key, int64_t size, const float** weight, int64_t out, const float** bias) {
      const Arguments pair = head.object(key);
      entries.push_back({pair.vector("weight"), size, weight});
      entries.push_back({pair.vector("bias"), out, bias});
    };
    entries.push_back({head.vector("probe"), width, &weights.probe});
    layer_of_head("postNorm", width, &weights.post_norm_weight, width, &weights.post_norm_bias);
    layer_of_head("q", square, &weights.head_q_weight, width, &weights.head_q_bias);
    layer_of_head("k", square, &weights.head_k_weight, width, &weights.head_k_bias);
    layer_of_head("v", square, &weights.head_v_weight, width, &weights.head_v_bias);
    layer_of_head("out", square, &weights.head_out_weight, width, &weights.head_out_bias);
    layer_of_head("norm", width, &weights.head_norm_weight, width, &weights.head_norm_bias);
    layer_of_head("fc1", inner * width, &weights.fc1_weight, inner, &weights.fc1_bias);
    layer_of_head("fc2", width * inner, &weights.fc2_weight, width, &weights.fc2_bias);
  }

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

Napi::Function BlockObject::define(Napi::Env env) {
  return Wrapped::define(env, "Block", {method<&BlockObject::analyze>("analyze"), method<&BlockObject::dispose>("dispose")});
}

BlockObject::BlockObject(const Napi::CallbackInfo& info) : state_(constructed_from<BlockObject>(info)) {}

Napi::Value BlockObject::analyze(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const State mine = state_;  // reading the arguments can run code that disposes this block
  if (!mine.block) throw disposed("block");
  mine.executor->check_open();
  const BlockConfig& config = mine.block->config();
  if (!info[0].IsArray()) throw invalid("ERR_DTYPE", "images", "something else", "an array of sequences");
  const Napi::Array images = info[0].As<Napi::Array>();
  std::vector<Asked> asked;
  const uint32_t count = images.Length();  // reading an image can change it
  for (uint32_t i = 0; i < count; i++) asked.emplace_back(images.Get(i), "images[" + std::to_string(i) + "]", config);
  const Encoding encoding = encoding_of(info[1]);
  const bool sync = info[2].ToBoolean();

  const Napi::Array results = Napi::Array::New(env, asked.size());
  std::vector<BlockOutput> outputs(asked.size());
  for (size_t i = 0; i < asked.size(); i++) put(results, i, allocate(env, config, asked[i], &outputs[i]));
  MemoryReader memory(env, sync ? Access::in_place : Access::held);
  std::vector<Sequence> sequences;
  for (size_t i = 0; i < asked.size(); i++) sequences.push_back(hold(env, memory, config, asked[i], outputs[i]));
  expect_apart(asked, sequences);
  auto job = std::make_unique<AnalyzeJob>(mine, encoding, std::move(sequences));
  return mine.executor->execute(env, {std::move(job), results}, sync);
}

void BlockObject::dispose(const Napi::CallbackInfo&) { state_ = {}; }

}  // namespace desap
