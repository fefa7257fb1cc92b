#include "kernel_jobs.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "arguments.h"
#include "outputs.h"

namespace desap {
namespace {

template <class Body>
class KernelJob : public Job {
 public:
  explicit KernelJob(Body body) : body_(std::move(body)) {}
  Status run(Context& context) override { return body_(context); }

 private:
  Body body_;
};

template <class Body>
Prepared job(const Napi::Value& result, Body body) {
  return {std::make_unique<KernelJob<Body>>(std::move(body)), result.As<Napi::Object>()};
}

Prepared prepare_layer_norm(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument x = arguments.matrix("x");
  const VectorArgument weight = arguments.vector("weight"), bias = arguments.vector("bias");
  const float epsilon = arguments.number("epsilon");
  const Output<float> y = new_floats(env, x.size());
  MemoryReader memory(env, access);
  return job(y.value,
              [x = FloatInput(memory, x), weight = VectorInput(memory, weight, x.cols),
               bias = VectorInput(memory, bias, x.cols), epsilon, y = y.data](Context& context) mutable -> Status {
                DESAP_TRY(x.widen(context));
                const ConstMatrix in = x.matrix();
                return layer_norm(context, in, weight.data(), bias.data(), epsilon, rows_of(y, in.rows, in.cols));
              });
}

Prepared prepare_rms_norm(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument x = arguments.matrix("x");
  const VectorArgument weight = arguments.vector("weight");
  const float epsilon = arguments.number("epsilon");
  const Output<float> y = new_floats(env, x.size());
  MemoryReader memory(env, access);
  return job(y.value, [x = FloatInput(memory, x), weight = VectorInput(memory, weight, x.cols), epsilon,
                       y = y.data](Context& context) mutable -> Status {
    DESAP_TRY(x.widen(context));
    const ConstMatrix in = x.matrix();
    return rms_norm(context, in, weight.data(), epsilon, rows_of(y, in.rows, in.cols));
  });
}

struct LinearFree {
  void operator()(Linear* linear) const { linear_free(linear); }
};
using LinearPointer = std::unique_ptr<Linear, LinearFree>;

Status pack(Context& context, ConstMatrix weight, const float* bias, LinearPointer& linear) {
  Linear* packed = nullptr;
  DESAP_TRY(linear_pack(context, weight, bias, &packed));
  linear.reset(packed);
  return {};
}

Prepared prepare_linear(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument x = arguments.matrix("x"), weight = arguments.matrix("weight");
  const VectorArgument bias = arguments.vector_or_null("bias");
  expect_shape(weight, weight.rows, x.cols);
  const Output<float> y = new_floats(env, x.rows * weight.rows);
  MemoryReader memory(env, access);
  return job(y.value,
              [x = FloatInput(memory, x), weight = FloatInput(memory, weight),
               bias = VectorInput(memory, bias, weight.rows), y = y.data](Context& context) mutable -> Status {
                DESAP_TRY(x.widen(context));
                DESAP_TRY(weight.widen(context));
                LinearPointer packed;
                DESAP_TRY(pack(context, weight.matrix(), bias.data(), packed));
                return linear(context, x.matrix(), *packed, rows_of(y, x.matrix().rows, weight.matrix().rows));
              });
}

Prepared prepare_attention(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument q = arguments.matrix("q"), k = arguments.matrix("k"), v = arguments.matrix("v");
  const int64_t heads = arguments.integer("heads", 1, q.cols);
  expect_divides("heads", heads, q.cols);
  expect_shape(k, q.rows, q.cols);
  expect_shape(v, q.rows, q.cols);
  const Output<float> y = new_floats(env, q.size());
  MemoryReader memory(env, access);
  return job(y.value,
              [q = FloatInput(memory, q), k = FloatInput(memory, k), v = FloatInput(memory, v), heads,
               y = y.data](Context& context) mutable -> Status {
                for (FloatInput* input : {&q, &k, &v}) DESAP_TRY(input->widen(context));
                return attention(context, q.matrix(), k.matrix(), v.matrix(), heads,
                                 rows_of(y, q.matrix().rows, q.matrix().cols));
              });
}

Prepared prepare_saliency(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument q = arguments.matrix("q"), k = arguments.matrix("k");
  const int64_t heads = arguments.integer("heads", 1, q.cols);
  const bool class_token = arguments.boolean("classToken");
  const RotaryArgument rotary = arguments.rotary_or_null("rotary");
  expect_divides("heads", heads, q.cols);
  if (rotary.given()) expect_halves("rotary", q.cols / heads);
  expect_shape(k, q.rows, q.cols);
  if (class_token && q.rows < 2) throw invalid("ERR_SHAPE", "q", "1 row", "the class token and at least one patch");
  const Output<float> y = new_floats(env, q.rows - (class_token ? 1 : 0));
  MemoryReader memory(env, access);
  return job(y.value,
              [q = FloatInput(memory, q), k = FloatInput(memory, k),
               rotary = RotaryInput(memory, rotary, q.rows * (q.cols / heads)), heads, class_token, y = y.data](Context& context) mutable -> Status {
                DESAP_TRY(q.widen(context));
                DESAP_TRY(k.widen(context));
                return saliency(context, q.matrix(), k.matrix(), heads, class_token, rotary.rotary(), y);
              });
}

Prepared prepare_self_attention(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument q = arguments.matrix("q"), k = arguments.matrix("k"), v = arguments.matrix("v");
  const int64_t heads = arguments.integer("heads", 1, q.cols);
  const RotaryArgument rotary = arguments.rotary_or_null("rotary");
  expect_divides("heads", heads, q.cols);
  if (rotary.given()) expect_halves("rotary", q.cols / heads);
  expect_shape(k, q.rows, q.cols);
  expect_shape(v, q.rows, q.cols);
  const Output<float> y = new_floats(env, q.size()), scores = new_floats(env, q.rows);
  const Napi::Object result = Napi::Object::New(env);
  put(result, "context", y.value);
  put(result, "saliency", scores.value);
  MemoryReader memory(env, access);
  return job(result,
              [q = FloatInput(memory, q), k = FloatInput(memory, k), v = FloatInput(memory, v),
               rotary = RotaryInput(memory, rotary, q.rows * (q.cols / heads)), heads, y = y.data,
               scores = scores.data](Context& context) mutable -> Status {
                for (FloatInput* input : {&q, &k, &v}) DESAP_TRY(input->widen(context));
                return self_attention(context, q.matrix(), k.matrix(), v.matrix(), heads, rotary.rotary(),
                                      rows_of(y, q.matrix().rows, q.matrix().cols), scores);
              });
}

Prepared prepare_pool(Napi::Env env, const Arguments& arguments, Access access) {
  const VectorArgument scores = arguments.vector("scores"), unit = arguments.vector("unit");
  const int64_t size = length_of(scores.data);
  const int64_t units = arguments.integer("units", 1, size < 1 ? 1 : size);
  const Output<float> means = new_floats(env, units);
  MemoryReader memory(env, access);
  const Memory index = read_units(env, unit, size < 0 ? 0 : size, units);
  return job(means.value, [scores = VectorInput(memory, scores, size), index, size, units, means = means.data](Context& context) {
    return pool(context, scores.data(), static_cast<const int32_t*>(index.data), size, units, means);
  });
}

Prepared prepare_unit_rows(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument x = arguments.matrix("x");
  const Output<float> y = new_floats(env, x.size());
  MemoryReader memory(env, access);
  return job(y.value, [x = FloatInput(memory, x), y = y.data](Context& context) mutable -> Status {
    DESAP_TRY(x.widen(context));
    return unit_rows(context, x.matrix(), rows_of(y, x.matrix().rows, x.matrix().cols));
  });
}

Prepared prepare_read_out(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument context_rows = arguments.matrix("context"), projection = arguments.matrix("visualProjection");
  const Arguments out = arguments.object("out"), post_norm = arguments.object("postNorm");
  const VectorArgument out_weight = out.vector("weight"), out_bias = out.vector("bias");
  const VectorArgument norm_weight = post_norm.vector("weight"), norm_bias = post_norm.vector("bias");
  const float epsilon = arguments.number("epsilon");
  const int64_t width = context_rows.cols;
  expect_shape(projection, projection.rows, width);
  const Output<float> attention = new_floats(env, context_rows.size());
  const Output<float> embeddings = new_floats(env, context_rows.rows * projection.rows);
  const Napi::Object result = Napi::Object::New(env);
  put(result, "attention", attention.value);
  put(result, "embeddings", embeddings.value);
  MemoryReader memory(env, access);
  return job(
      result,
      [x = FloatInput(memory, context_rows), projection = FloatInput(memory, projection),
       out_weight = VectorInput(memory, out_weight, width * width), out_bias = VectorInput(memory, out_bias, width),
       norm_weight = VectorInput(memory, norm_weight, width), norm_bias = VectorInput(memory, norm_bias, width),
       epsilon, width, attention = attention.data, embeddings = embeddings.data](Context& context) mutable -> Status {
        DESAP_TRY(x.widen(context));
        DESAP_TRY(projection.widen(context));
        LinearPointer packed_out, packed_projection;
        DESAP_TRY(pack(context, {out_weight.data(), width, width, width}, out_bias.data(), packed_out));
        DESAP_TRY(pack(context, projection.matrix(), nullptr, packed_projection));
        const ReadOut weights{packed_out.get(), norm_weight.data(), norm_bias.data(), epsilon, packed_projection.get()};
        const int64_t rows = x.matrix().rows;
        return read_out(context, x.matrix(), weights, rows_of(attention, rows, width),
                        rows_of(embeddings, rows, projection.matrix().rows));
      });
}

// The weight and the bias of a layer, as they are read and as they are held.
struct LayerArgument {
  LayerArgument(const Arguments& arguments, const char* key) {
    const Arguments layer = arguments.object(key);
    weight = layer.vector("weight");
    bias = layer.vector("bias");
  }
  VectorArgument weight, bias;
};
struct LayerInput {
  LayerInput(MemoryReader& memory, const LayerArgument& argument, int64_t rows, int64_t cols)
      : weight(memory, argument.weight, rows * cols), bias(memory, argument.bias, rows), out(rows), in(cols) {}
  VectorInput weight, bias;
  int64_t out, in;
};

Status pack(Context& context, const LayerInput& layer, LinearPointer& linear) {
  return pack(context, {layer.weight.data(), layer.out, layer.in, layer.in}, layer.bias.data(), linear);
}

Prepared prepare_siglip_read_out(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument attention = arguments.matrix("attention");
  const LayerArgument post_norm(arguments, "postNorm"), key(arguments, "key"), value(arguments, "value"), out(arguments, "out"),
      norm(arguments, "norm"), fc1(arguments, "fc1"), fc2(arguments, "fc2");
  const VectorArgument query = arguments.vector("query");
  const int64_t width = attention.cols, rows = attention.rows, heads = arguments.integer("heads", 1, width);
  const float epsilon = arguments.number("epsilon");
  expect_divides("heads", heads, width);
  const int64_t inner = std::max<int64_t>(length_of(fc1.bias.data), 1);
  const Output<float> embeddings = new_floats(env, attention.size()), global = new_floats(env, width), saliency = new_floats(env, rows);
  const Napi::Object result = Napi::Object::New(env);
  put(result, "embeddings", embeddings.value);
  put(result, "global", global.value);
  put(result, "saliency", saliency.value);
  MemoryReader memory(env, access);
  return job(
      result,
      [x = FloatInput(memory, attention), post_norm = LayerInput(memory, post_norm, width, 1), query = VectorInput(memory, query, width),
       key = LayerInput(memory, key, width, width), value = LayerInput(memory, value, width, width),
       out = LayerInput(memory, out, width, width), norm = LayerInput(memory, norm, width, 1), fc1 = LayerInput(memory, fc1, inner, width),
       fc2 = LayerInput(memory, fc2, width, inner), heads, epsilon, embeddings = embeddings.data, global = global.data,
       saliency = saliency.data](Context& context) mutable -> Status {
        DESAP_TRY(x.widen(context));
        LinearPointer packed[5];
        const LayerInput* const layers[] = {&key, &value, &out, &fc1, &fc2};
        for (int i = 0; i < 5; i++) DESAP_TRY(pack(context, *layers[i], packed[i]));
        const SiglipReadOut head{post_norm.weight.data(), post_norm.bias.data(), query.data(),     packed[0].get(),
                                 packed[1].get(),         packed[2].get(),       norm.weight.data(), norm.bias.data(),
                                 packed[3].get(),         packed[4].get(),       heads,            epsilon};
        const ConstMatrix rows_in = x.matrix();
        return siglip_read_out(context, rows_in, head, rows_of(embeddings, rows_in.rows, rows_in.cols), global, saliency);
      });
}

Prepared prepare_align(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument visual = arguments.matrix("visual"), text = arguments.matrix("text");
  const VectorArgument end_of_text = arguments.vector("endOfText"), global = arguments.vector("global");
  const Alignment alignment = alignment_of(arguments);
  const float lambda = arguments.number("lambda");
  const bool wanted = arguments.boolean("matrices");
  expect_shape(text, text.rows, visual.cols);
  const Output<float> task = new_floats(env, visual.rows);
  AlignmentMatrices matrices;
  const Napi::Object result = Napi::Object::New(env);
  put(result, "task", task.value);
  put(result, "matrices", new_matrices(env, wanted, alignment, visual.rows, text.rows, &matrices));
  MemoryReader memory(env, access);
  return job(result,
              [visual = FloatInput(memory, visual), text = FloatInput(memory, text),
               end_of_text = VectorInput(memory, end_of_text, visual.cols), global = VectorInput(memory, global, visual.cols),
               alignment, lambda, task = task.data, matrices](Context& context) mutable -> Status {
                DESAP_TRY(visual.widen(context));
                DESAP_TRY(text.widen(context));
                return align(context, visual.matrix(), text.matrix(), end_of_text.data(), global.data(), alignment, lambda,
                             task, matrices);
              });
}

Prepared prepare_top_k(Napi::Env env, const Arguments& arguments, Access access) {
  const VectorArgument scores = arguments.vector("scores"), excluded = arguments.vector_or_null("excluded");
  const int64_t size = length_of(scores.data);
  const int64_t k = arguments.integer("k", 0, size < 0 ? 0 : size);
  const Output<int32_t> indices = new_ints(env, k);
  MemoryReader memory(env, access);
  Memory mask;
  if (excluded.given()) {
    mask = MemoryReader(env, Access::copied).read(excluded.name, excluded.data, napi_uint8_array, size);
    const uint8_t* bytes = static_cast<const uint8_t*>(mask.data);
    int64_t candidates = 0;
    for (int64_t i = 0; i < size; i++) candidates += bytes[i] == 0;
    if (k > candidates)
      throw invalid("ERR_VALUE", "k", std::to_string(k),
                    "at most " + std::to_string(candidates) + ", the entries not excluded");
  }
  return job(indices.value,
              [scores = VectorInput(memory, scores, size), mask, size, k, indices = indices.data](Context& context) {
                return top_k(context, scores.data(), static_cast<const uint8_t*>(mask.data), size, k, indices);
              });
}

Prepared prepare_select(Napi::Env env, const Arguments& arguments, Access access) {
  const VectorArgument task = arguments.vector_or_null("task"), saliency = arguments.vector_or_null("saliency");
  const int64_t size = length_of(task.given() ? task.data : saliency.data);
  const int64_t keep = arguments.integer("keep", 0, size < 0 ? 0 : size);
  const int64_t task_keep = arguments.integer("taskKeep", saliency.given() ? 0 : keep, task.given() ? keep : 0);
  const Output<int32_t> indices = new_ints(env, keep);
  const Output<uint8_t> source = new_bytes(env, keep);
  const Napi::Object result = Napi::Object::New(env);
  put(result, "indices", indices.value);
  put(result, "source", source.value);
  MemoryReader memory(env, access);
  return job(result, [task = VectorInput(memory, task, size), saliency = VectorInput(memory, saliency, size), size, keep, task_keep,
                      indices = indices.data, source = source.data](Context& context) {
    return select(context, task.data(), saliency.data(), size, keep, task_keep, indices, source);
  });
}

Prepared prepare_merge(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument features = arguments.matrix("features");
  const VectorArgument kept = arguments.vector("kept");
  const int64_t k = length_of(kept.data);
  if (k < 1 || k > features.rows) {
    const char* code = k < 0 ? "ERR_DTYPE" : "ERR_SHAPE";
    throw invalid(code, "kept", k < 0 ? "no typed array" : std::to_string(k) + " elements",
                  "1 to " + std::to_string(features.rows) + " indices");
  }
  const Output<float> tokens = new_floats(env, k * features.cols);
  const Output<int32_t> assignment = new_ints(env, features.rows), counts = new_ints(env, k);
  const Napi::Object result = Napi::Object::New(env);
  put(result, "tokens", tokens.value);
  put(result, "assignment", assignment.value);
  put(result, "counts", counts.value);
  const Memory indices = MemoryReader(env, Access::copied).read(kept.name, kept.data, napi_int32_array, k);
  const int32_t* index = static_cast<const int32_t*>(indices.data);
  for (int64_t i = 0, low = 0; i < k; low = index[i++] + 1) {
    if (index[i] >= low && index[i] < features.rows) continue;
    throw invalid("ERR_VALUE", "kept[" + std::to_string(i) + "]", std::to_string(index[i]),
                  "ascending, distinct indices below " + std::to_string(features.rows));
  }
  MemoryReader memory(env, access);
  return job(result,
              [features = FloatInput(memory, features), indices, k, tokens = tokens.data, assignment = assignment.data,
               counts = counts.data](Context& context) mutable -> Status {
                DESAP_TRY(features.widen(context));
                const ConstMatrix rows = features.matrix();
                return merge(context, rows, static_cast<const int32_t*>(indices.data), k, rows_of(tokens, k, rows.cols),
                             assignment, counts);
              });
}

Prepared prepare_farthest_points(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument x = arguments.matrix("x");
  const VectorArgument seeds = arguments.vector("seeds");
  const int64_t seed_count = length_of(seeds.data);
  if (seed_count < 0 || seed_count > x.rows) {
    throw invalid(seed_count < 0 ? "ERR_DTYPE" : "ERR_SHAPE", "seeds", seed_count < 0 ? "no typed array" : std::to_string(seed_count) + " elements",
                  "at most " + std::to_string(x.rows) + " indices");
  }
  const int64_t count = arguments.integer("count", 0, x.rows - seed_count);
  const Output<int32_t> picked = new_ints(env, count);
  const Memory indices = MemoryReader(env, Access::copied).read(seeds.name, seeds.data, napi_int32_array, seed_count);
  const int32_t* index = static_cast<const int32_t*>(indices.data);
  std::vector<bool> seen(static_cast<size_t>(x.rows));
  for (int64_t s = 0; s < seed_count; s++) {
    if (index[s] < 0 || index[s] >= x.rows || seen[static_cast<size_t>(index[s])])
      throw invalid("ERR_VALUE", "seeds[" + std::to_string(s) + "]", std::to_string(index[s]), "distinct indices below " + std::to_string(x.rows));
    seen[static_cast<size_t>(index[s])] = true;
  }
  MemoryReader memory(env, access);
  return job(picked.value, [x = FloatInput(memory, x), indices, seed_count, count, picked = picked.data](Context& context) mutable -> Status {
    DESAP_TRY(x.widen(context));
    return farthest_points(context, x.matrix(), static_cast<const int32_t*>(indices.data), seed_count, count, picked);
  });
}

Prepared prepare_dpp(Napi::Env env, const Arguments& arguments, Access access) {
  const MatrixArgument x = arguments.matrix("x");
  const VectorArgument relevance = arguments.vector("relevance");
  const float blend = arguments.number("blend");
  const int64_t count = arguments.integer("count", 0, x.rows);
  const Output<int32_t> picked = new_ints(env, count);
  MemoryReader memory(env, access);
  return job(picked.value, [x = FloatInput(memory, x), relevance = VectorInput(memory, relevance, x.rows), blend, count,
                            picked = picked.data](Context& context) mutable -> Status {
    DESAP_TRY(x.widen(context));
    return dpp(context, x.matrix(), relevance.data(), blend, count, picked);
  });
}

struct Entry {
  const char* name;
  Prepared (*prepare)(Napi::Env, const Arguments&, Access);
};

const Entry kernels[] = {
    {"layerNorm", prepare_layer_norm},
    {"rmsNorm", prepare_rms_norm},
    {"linear", prepare_linear},
    {"attention", prepare_attention},
    {"saliency", prepare_saliency},
    {"selfAttention", prepare_self_attention},
    {"pool", prepare_pool},
    {"unitRows", prepare_unit_rows},
    {"readOut", prepare_read_out},
    {"siglipReadOut", prepare_siglip_read_out},
    {"align", prepare_align},
    {"topK", prepare_top_k},
    {"select", prepare_select},
    {"merge", prepare_merge},
    {"farthestPoints", prepare_farthest_points},
    {"dpp", prepare_dpp},
};

}  // namespace

Prepared prepare_kernel(Napi::Env env, const std::string& kernel, const Napi::Value& arguments, bool sync) {
  for (const Entry& entry : kernels) {
    if (kernel == entry.name) return entry.prepare(env, Arguments(arguments, ""), sync ? Access::in_place : Access::held);
  }
  throw invalid("ERR_VALUE", "kernel", kernel, "the name of a kernel");
}

}  // namespace desap
