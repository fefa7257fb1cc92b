// The whole head against the golden cases, and its contract: holds, half precision, options, errors, nothing written.
#include <limits>
#include <memory>

#include "../head.h"
#include "golden.h"
#include "harness.h"
#include "reference_head.h"

namespace desap::test {
namespace {

const char* const golden_cases[] = {"tiny", "odd",  "nocls",        "vit-small", "task-only", "salient-only", "vv",
                                    "kk",   "qk",   "no-alignment", "one-token", "keep-all",  "clamped",      "odd-share",
                                    "lambda"};

struct Pruned {
  Floats tokens, task, saliency, similarity, visual, text;
  Ints indices, assignment, counts;
  std::vector<uint8_t> source;
};

// One golden case: its weights as a head, its inputs, its options.
struct Example {
  explicit Example(const std::string& name) : golden(name) {
    hidden = golden.tensor<float>("input.hidden");
    text = golden.tensor<float>("input.text");
    rows = golden.shape("input.hidden")[0];
    text_tokens = golden.shape("input.text")[0];
    config.width = golden.shape("input.hidden")[1];
    config.projection_dim = golden.shape("input.text")[1];
    config.heads = std::stoll(golden.config("heads"));
    config.class_token = golden.config("cls") != "false";
    config.epsilon = 1e-5f;
    patches = rows - (config.class_token ? 1 : 0);
    const std::string names[] = {"qq", "kk", "vv", "qk"};
    for (int i = 0; i < 4; i++) {
      if (golden.config("encoding") == names[i]) encoding = static_cast<Encoding>(i);
    }
    const std::string share = golden.config("task_share"), lambda = golden.config("lambda");
    request.text = {text.data(), text_tokens, config.projection_dim, config.projection_dim};
    request.end_of_text = nullptr;
    request.end_of_text_row = std::stoll(golden.config("eos"));
    request.keep = std::stoll(golden.config("keep"));
    request.task_keep = static_cast<int64_t>(std::floor(static_cast<double>(request.keep) * (share.empty() ? 0.5 : std::stod(share)) + 0.5));
    request.alignment = golden.config("alignment") == "false" ? Alignment::mean
                        : golden.config("clamp") == "true"    ? Alignment::fcma_clamped
                                                              : Alignment::fcma;
    request.lambda = lambda.empty() ? 0.1f : std::stof(lambda);
    request.task = request.saliency = nullptr;
    request.merge = true;
    request.features = {nullptr, 0, 0, 0};
  }

  std::shared_ptr<Head> head(Context& context) const {
    std::vector<Floats> w;
    for (const char* name : {"ln1.weight", "ln1.bias", "q.weight", "q.bias", "k.weight", "k.bias", "v.weight", "v.bias", "out.weight",
                             "out.bias", "post_ln.weight", "post_ln.bias", "visual_projection.weight"}) {
      w.push_back(golden.tensor<float>(std::string("weight.") + name));
    }
    const HeadWeights weights{w[0].data(), w[1].data(), w[2].data(), w[3].data(), w[4].data(),  w[5].data(), w[6].data(),
                              w[7].data(), w[8].data(), w[9].data(), w[10].data(), w[11].data(), w[12].data()};
    std::shared_ptr<Head> result;
    check(Head::create(context, config, weights, &result).good(), "create");
    return result;
  }

  Pruned room(int64_t features) const {
    const size_t k = static_cast<size_t>(request.keep), p = static_cast<size_t>(patches), m = p * static_cast<size_t>(text_tokens);
    return {Floats(k * static_cast<size_t>(features), 7), Floats(p, 7), Floats(p, 7), Floats(m, 7), Floats(m, 7), Floats(m, 7), Ints(k, 7), Ints(p, 7), Ints(k, 7),
            std::vector<uint8_t>(k, 7)};
  }

  static PruneOutput output(Pruned& r) {
    return {r.tokens.data(), r.indices.data(), r.source.data(), r.assignment.data(), r.counts.data(), r.task.data(),
            r.saliency.data(), {r.similarity.data(), r.visual.data(), r.text.data()}};
  }

  Golden golden;
  Floats hidden, text;
  int64_t rows, text_tokens, patches;
  HeadConfig config;
  Encoding encoding = Encoding::qq;
  PruneRequest request;
};

Ints integers(const Golden& golden, const char* name) {
  const std::vector<int64_t> x = golden.tensor<int64_t>(name);
  return Ints(x.begin(), x.end());
}

DESAP_CASE(head_golden) {
  for (const char* name : golden_cases) {
    const Example e(name);
    if (!check(e.golden.found(), std::string(name) + " is there")) continue;
    const std::string what = name;
    Pruned pruned = e.room(e.config.width);
    const Floats all = machine.same<float>(what, [&](Context& context) {
      const std::shared_ptr<Head> head = e.head(context);
      const size_t size = e.hidden.size();
      Floats attended(size), projected(size);
      std::shared_ptr<Analysis> analysis;
      const HiddenStates hidden{e.hidden.data(), false, e.rows, nullptr};
      const Intermediates copies{attended.data(), projected.data()};
      check(head->analyze(context, &hidden, 1, e.encoding, &copies, &analysis).good(), "analyze");
      pruned = e.room(e.config.width);
      PruneTimings timings;
      check(analysis->prune(context, e.request, Example::output(pruned), &timings).good(), "prune");
      Floats embedding(static_cast<size_t>(e.rows * e.config.projection_dim)), saliency(static_cast<size_t>(e.patches));
      check(read_embeddings(*analysis, embedding.data()).good() && analysis->read_saliency(saliency.data()).good(), "read");
      return concatenate({attended, projected, embedding, saliency, pruned.task, pruned.tokens});
    });
    const bool fp32 = machine.precision == Precision::fp32;  // otherwise operands are rounded, and a token may flip
    const double tolerance = fp32 ? 2e-5 : machine.tolerance(2e-5);
    size_t at = 0;
    for (const char* output : {"context", "attention", "embedding", "saliency", "task", "tokens"}) {
      if (!fp32 && std::strcmp(output, "tokens") == 0) break;
      const Doubles expected = e.golden.tensor<double>(std::string("output.") + output);
      const Floats part(all.begin() + static_cast<int64_t>(at), all.begin() + static_cast<int64_t>(at + expected.size()));
      check_close(part, expected, tolerance, what + " " + output);
      at += expected.size();
    }
    if (!fp32) continue;
    check(pruned.indices == integers(e.golden, "output.kept"), what + " kept");
    check(pruned.assignment == integers(e.golden, "output.assignment"), what + " assignment");
    check(pruned.counts == integers(e.golden, "output.count"), what + " count");
    check(Ints(pruned.source.begin(), pruned.source.end()) == integers(e.golden, "output.source"), what + " source");
  }
}

// Widths that no vector divides, more and fewer outputs than inputs, and heads of odd size.
const HeadShape head_shape_list[] = {
    {97, 48, 3, 20, true, 5, 9},   {50, 33, 3, 60, true, 4, 7},  {33, 40, 5, 40, false, 3, 6},
    {2, 21, 3, 22, true, 1, 1},    {65, 64, 2, 1, true, 6, 8},   {20, 4, 4, 7, false, 2, 3},
};

// The first head's queries times `gain`: 40 makes them too long for the Gaussian form of the attention.
RandomWeights long_queries(const HeadShape& shape, float gain) {
  RandomWeights weights(shape);
  for (int64_t i = 0; i < shape.width / shape.heads * shape.width; i++) weights.q[static_cast<size_t>(i)] *= gain;
  return weights;
}

DESAP_CASE(head_shapes) {
  for (const HeadShape& s : head_shape_list) {
    for (float gain : {1.0f, 40.0f}) {
      if (gain > 1 && machine.precision != Precision::fp32) continue;  // operands of 16 bits resolve no such scores
      const RandomWeights weights = long_queries(s, gain);
      const RandomImages images(s, 1);
      const std::string what = shape({s.rows, s.width, s.heads, s.projection_dim}) + (gain > 1 ? ", long queries" : "");
      const HeadReference expected = head_reference(weights, s, images.image(0), images.text.data(), Encoding::qq);
      const Floats all = machine.same<float>(what, [&](Context& context) {
        std::shared_ptr<Head> head;
        check(Head::create(context, weights.config, weights.weights(), &head).good(), "create");
        const size_t size = static_cast<size_t>(s.rows * s.width);
        Floats attended(size), projected(size), embedding(static_cast<size_t>(s.rows * s.projection_dim));
        Floats saliency(static_cast<size_t>(s.patches()));
        std::shared_ptr<Analysis> analysis;
        const Intermediates copies{attended.data(), projected.data()};
        check(head->analyze(context, images.states().data(), 1, Encoding::qq, &copies, &analysis).good(), "analyze");
        check(read_embeddings(*analysis, embedding.data()).good() && analysis->read_saliency(saliency.data()).good(), "read");
        Answers answers(s, 1);
        check(analysis->prune(context, images.requests()[0], answers.outputs()[0], nullptr).good(), "prune");
        return concatenate({attended, projected, embedding, saliency, answers.task});
      });
      const double tolerance = machine.tolerance(gain > 1 ? 1e-4 : 2e-5);
      auto at = all.begin();
      for (const Doubles* part : {&expected.context, &expected.attention, &expected.embedding, &expected.saliency, &expected.task}) {
        check_close(Floats(at, at + static_cast<int64_t>(part->size())), *part, tolerance, what, part == &expected.task ? 1e-3 : 0);
        at += static_cast<int64_t>(part->size());
      }
    }
  }
}

// Rounded once or by each of their readers, written as float32 or not at all: the rows between the stages are the same.
DESAP_CASE(head_intermediates_change_nothing) {
  for (const HeadShape& s : head_shape_list) {
    for (float gain : {1.0f, 40.0f}) {
      const RandomWeights weights = long_queries(s, gain);
      const RandomImages images(s, 1);
      std::shared_ptr<Head> head;
      check(Head::create(machine.one(), weights.config, weights.weights(), &head).good(), "create");
      const auto embeddings = [&](const Intermediates* copies) {
        std::shared_ptr<Analysis> analysis;
        Floats embedding(static_cast<size_t>(s.rows * s.projection_dim));
        check(head->analyze(machine.one(), images.states().data(), 1, Encoding::qq, copies, &analysis).good(), "analyze");
        check(read_embeddings(*analysis, embedding.data()).good(), "read");
        return embedding;
      };
      Floats attended(static_cast<size_t>(s.rows * s.width));
      const Intermediates copies{attended.data(), nullptr};
      check(embeddings(nullptr) == embeddings(&copies), shape({s.rows, s.width, s.heads, s.projection_dim}) + (gain > 1 ? ", long queries" : ""));
    }
  }
}

std::shared_ptr<Analysis> analyzed(const Machine& machine, const Example& e, const HiddenStates& hidden) {
  std::shared_ptr<Analysis> analysis;
  check(e.head(machine.one())->analyze(machine.one(), &hidden, 1, e.encoding, nullptr, &analysis).good(), "analyze");
  return analysis;
}

DESAP_CASE(head_keeps_a_hold_or_a_copy) {
  Example e("tiny");
  auto memory = std::make_shared<Floats>(e.hidden);
  const std::weak_ptr<Floats> watch = memory;
  std::shared_ptr<Analysis> held = analyzed(machine, e, {memory->data(), false, e.rows, memory});
  const bool in_place = held->features() != nullptr;  // a GPU has made a copy of its own
  if (in_place) check(held->features() == memory->data() + e.config.width, "reads the held memory in place");
  memory.reset();
  check(watch.expired() != in_place, "and then holds it");

  std::shared_ptr<Analysis> copied = analyzed(machine, e, {e.hidden.data(), false, e.rows, nullptr});
  Pruned a = e.room(e.config.width), b = a;
  e.hidden.assign(e.hidden.size(), NAN);
  check(held->prune(machine.one(), e.request, Example::output(a), nullptr).good(), "prune held");
  check(copied->prune(machine.one(), e.request, Example::output(b), nullptr).good(), "prune copied");
  check(a.tokens == b.tokens && a.indices == b.indices && a.visual == b.visual, "same result");
  held.reset();
  check(watch.expired(), "and lets it go");
}

DESAP_CASE(head_half) {
  Example e("odd");
  std::vector<uint16_t> half(e.hidden.size());
  convert_to_half(machine.one(), e.hidden.data(), static_cast<int64_t>(half.size()), half.data());
  convert_half(machine.one(), half.data(), static_cast<int64_t>(half.size()), e.hidden.data());
  Pruned a = e.room(e.config.width), b = a;
  check(analyzed(machine, e, {half.data(), true, e.rows, nullptr})->prune(machine.one(), e.request, Example::output(a), nullptr).good(), "half");
  check(analyzed(machine, e, {e.hidden.data(), false, e.rows, nullptr})->prune(machine.one(), e.request, Example::output(b), nullptr).good(), "float");
  check(a.tokens == b.tokens && a.indices == b.indices && a.task == b.task, "half is its float values");
}

DESAP_CASE(head_prune_options) {
  Example e("vit-small");
  const auto analysis = analyzed(machine, e, {e.hidden.data(), false, e.rows, nullptr});
  Pruned plain = e.room(e.config.width), r = plain;
  check(analysis->prune(machine.one(), e.request, Example::output(plain), nullptr).good(), "plain");

  const Floats query(e.text.begin() + e.request.end_of_text_row * e.config.projection_dim, e.text.begin() + (e.request.end_of_text_row + 1) * e.config.projection_dim);
  e.request.end_of_text = query.data();
  check(analysis->prune(machine.one(), e.request, Example::output(r), nullptr).good() && r.task == plain.task, "the end-of-text row as a vector");
  e.request.end_of_text = nullptr;

  Floats map(static_cast<size_t>(e.patches), 0.0f);
  map.back() = 1;
  e.request.saliency = map.data();
  e.request.task_keep = e.request.keep - 1;
  check(analysis->prune(machine.one(), e.request, Example::output(r), nullptr).good() && r.indices.back() == e.patches - 1 && r.source.back() == 1, "a map of one's own");
  e.request.saliency = nullptr;
  e.request.task_keep = 0;
  check(analysis->prune(machine.one(), e.request, Example::output(r), nullptr).good(), "saliency alone");
  for (uint8_t s : r.source) check(s == 1, "source");

  e.request.merge = false;
  Floats features = Random(1).floats(e.patches * 3);
  e.request.features = {features.data(), e.patches, 3, 3};
  r = e.room(3);
  check(analysis->prune(machine.one(), e.request, Example::output(r), nullptr).good(), "no merge, features of one's own");
  int kept = 0;
  for (int64_t i = 0; i < e.patches; i++) kept += r.assignment[static_cast<size_t>(i)] >= 0;
  check(kept == e.request.keep && r.counts == Ints(r.counts.size(), 1), "dropped patches have no token");
  for (size_t i = 0; i < r.indices.size(); i++) {
    check(r.tokens[i * 3] == features[static_cast<size_t>(r.indices[i]) * 3] && r.assignment[static_cast<size_t>(r.indices[i])] == static_cast<int>(i), "rows as they are");
  }
}

// Images of two sizes: each alone, both at once, and analysed and pruned in one go.
DESAP_CASE(head_batches) {
  Example e("vit-small");
  const int64_t sizes[] = {e.rows, e.rows - 5};
  const std::shared_ptr<Head> head = e.head(machine.one());
  HiddenStates images[2];
  for (int i = 0; i < 2; i++) images[i] = {e.hidden.data(), false, sizes[i], nullptr};
  std::shared_ptr<Analysis> together[2];
  check(head->analyze(machine.one(), images, 2, e.encoding, nullptr, together).good(), "analyze");
  const PruneRequest requests[] = {e.request, e.request};
  Pruned alone[2] = {e.room(e.config.width), e.room(e.config.width)}, batch[2] = {alone[0], alone[1]}, straight[2] = {alone[0], alone[1]};
  const PruneOutput outputs[] = {Example::output(straight[0]), Example::output(straight[1])};
  for (size_t i = 0; i < 2; i++) {
    std::shared_ptr<Analysis> one;
    check(head->analyze(machine.one(), images + i, 1, e.encoding, nullptr, &one).good(), "analyze one");
    check(one->prune(machine.one(), e.request, Example::output(alone[i]), nullptr).good(), "prune one");
    Floats own(alone[i].saliency.size(), 7);
    check(one->read_saliency(own.data()).good() && own == alone[i].saliency, "the analysis' saliency");
    check(together[i]->prune(machine.one(), e.request, Example::output(batch[i]), nullptr).good(), "prune of a batch");
  }
  AnalyzeTimings analyze_times[2];
  PruneTimings prune_times[2];
  check(head->prune(machine.one(), images, 2, e.encoding, requests, outputs, analyze_times, prune_times).good(), "in one go");
  for (const auto* results : {&batch, &straight}) {
    for (size_t i = 0; i < 2; i++) {
      const Pruned &a = alone[i], &b = (*results)[i];
      check(a.tokens == b.tokens && a.task == b.task && a.saliency == b.saliency && a.indices == b.indices && a.assignment == b.assignment && a.counts == b.counts &&
            a.source == b.source && a.similarity == b.similarity && a.visual == b.visual && a.text == b.text, "equal");
    }
  }

  Floats bad = e.hidden;
  bad[static_cast<size_t>(7 * e.config.width)] = NAN;
  images[1].data = bad.data();
  const Status status = head->analyze(machine.one(), images, 2, e.encoding, nullptr, together);
  check(is(status, Code::not_finite, "hidden", 7) && status.image == 1, "the error says which image");
  const Status again = head->prune(machine.one(), images, 2, e.encoding, requests, outputs, nullptr, nullptr);
  check(is(again, Code::not_finite, "hidden", 7) && again.image == 1, "in one go, too");
}

// Of its own rows an analysis knows the norms; of others merging finds them.
DESAP_CASE(head_merges_its_rows_like_given_ones) {
  const HeadShape s{40, 24, 3, 20, true, 3, 9};
  const RandomWeights weights(s);
  RandomImages images(s, 1);
  for (const bool huge : {false, true}) {  // a row that can be centred, and whose norm is infinite
    for (int64_t j = 0; huge && j < s.width; j++) images.hidden[static_cast<size_t>(17 * s.width + j)] = 3e19f;
    std::shared_ptr<Head> head;
    check(Head::create(machine.one(), weights.config, weights.weights(), &head).good(), "create");
    std::shared_ptr<Analysis> analysis;
    const Status made = head->analyze(machine.one(), images.states().data(), 1, Encoding::qq, nullptr, &analysis);
    if (huge && is(made, Code::not_finite, "hidden", 17)) continue;  // a GPU's sums of squares end there already
    if (!check(made.good(), "analyze")) continue;
    PruneRequest given = images.requests()[0];
    given.features = {images.image(0) + s.width, s.patches(), s.width, s.width};
    Answers own(s, 1), others(s, 1);
    const Status status = analysis->prune(machine.one(), images.requests()[0], own.outputs()[0], nullptr);
    const Status expected = analysis->prune(machine.one(), given, others.outputs()[0], nullptr);
    check(status.code == expected.code && status.where == expected.where && own.bytes() == others.bytes(), "as if given");
    check(huge ? is(status, Code::not_finite, "features", 16) : status.good(), "status");
  }
}

DESAP_CASE(head_errors_write_nothing) {
  const float infinity = std::numeric_limits<float>::infinity();
  Example e("tiny");
  const auto analysis = analyzed(machine, e, {e.hidden.data(), false, e.rows, nullptr});
  Floats hidden = e.hidden;
  hidden[static_cast<size_t>(3 * e.config.width + 1)] = infinity;
  std::shared_ptr<Analysis> none;
  const HiddenStates bad{hidden.data(), false, e.rows, nullptr};
  check(is(e.head(machine.one())->analyze(machine.one(), &bad, 1, e.encoding, nullptr, &none), Code::not_finite, "hidden", 3) && !none, "hidden");

  const Floats text = e.text;
  const auto fails = [&](const char* what, int64_t where, int64_t features) {
    Pruned r = e.room(features);
    check(is(analysis->prune(machine.one(), e.request, Example::output(r), nullptr), Code::not_finite, what, where), what);
    bool untouched = true;
    for (const Floats* x : {&r.tokens, &r.task, &r.similarity, &r.visual, &r.text}) untouched = untouched && *x == Floats(x->size(), 7);
    for (const Ints* x : {&r.indices, &r.assignment, &r.counts}) untouched = untouched && *x == Ints(x->size(), 7);
    check(untouched && r.source == std::vector<uint8_t>(r.source.size(), 7), std::string(what) + ": nothing written");
  };
  e.text[static_cast<size_t>(2 * e.config.projection_dim)] = NAN;
  fails("text", 2, e.config.width);
  e.text = text;
  Floats query(static_cast<size_t>(e.config.projection_dim), infinity);
  e.request.end_of_text = query.data();
  fails("endOfText", 0, e.config.width);
  e.request.end_of_text = nullptr;
  Floats map(static_cast<size_t>(e.patches), 0.0f);
  map[9] = NAN;
  e.request.saliency = map.data();
  e.request.task_keep = 0;
  fails("saliency", 9, e.config.width);
  e.request.saliency = nullptr;
  Floats features(static_cast<size_t>(e.patches * 5), 1.0f);
  features[4 * 5 + 2] = -infinity;
  e.request.features = {features.data(), e.patches, 5, 5};
  fails("features", 4, 5);
}

}  // namespace
}  // namespace desap::test
