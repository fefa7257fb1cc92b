// The head on a card: against float64 in every shape of head and encoding, batches, replayed graphs, threads, memory that the
// card reads in place, and (emulated, where it can be arranged) everything that can go wrong.
#include <thread>

#include "../../cuda/context.h"
#include "../reference_head.h"

#ifdef DESAP_SIMT
#include "../simt/simt_control.h"
#endif

namespace desap::test {
namespace {

constexpr Encoding encodings[] = {Encoding::qq, Encoding::kk, Encoding::vv, Encoding::qk};

using ContextPointer = std::shared_ptr<Context>;

ContextPointer new_context(Precision precision, int lanes) {
  Context* context = nullptr;
  const int card = cuda::availability().devices[0].index;
  if (!check(cuda::context_create({card, precision, lanes}, &context).good(), "context")) return nullptr;
  return ContextPointer(context, cuda::context_destroy);
}

std::shared_ptr<Head> new_head(Context& context, const RandomWeights& weights) {
  std::shared_ptr<Head> head;
  check(Head::create(context, weights.config, weights.weights(), &head).good(), "create");
  return head;
}

// Errors of the largest value: fp32 is far inside the contract's 1e-4.
double head_tolerance(const Machine& machine) { return machine.precision == Precision::fp32 ? 1e-5 : machine.tolerance(2e-5); }

void check_head(const Machine& machine, const RandomWeights& weights, const HeadShape& shape, Encoding encoding, const std::string& what) {
  const RandomImages images(shape, 1);
  const HeadReference expected = head_reference(weights, shape, images.image(0), images.text.data(), encoding);
  const std::shared_ptr<Head> head = new_head(machine.one(), weights);
  if (!head) return;
  const size_t size = static_cast<size_t>(shape.tokens * shape.width);
  Floats context(size, NAN), attention(size, NAN), embedding(expected.embedding.size(), NAN), saliency(expected.saliency.size(), NAN);
  const Intermediates copies{context.data(), attention.data()};
  std::shared_ptr<Analysis> analysis;
  if (!check(head->analyze(machine.one(), images.states().data(), 1, encoding, &copies, &analysis).good(), what + " analyze")) return;
  check(read_embeddings(*analysis, embedding.data()).good() && analysis->read_saliency(saliency.data()).good(), what + " read");
  Answers answers(shape, 1), straight(shape, 1);
  check(analysis->prune(machine.one(), images.requests()[0], answers.outputs()[0], nullptr).good(), what + " prune");
  check(head->prune(machine.one(), images.states().data(), 1, encoding, images.requests().data(), straight.outputs().data(), nullptr, nullptr).good(), what + " straight");
  check(answers.bytes() == straight.bytes(), what + " in one go or two");
  const double tolerance = head_tolerance(machine);
  check_close(context, expected.context, tolerance, what + " context");
  check_close(attention, expected.attention, tolerance, what + " attention");
  check_close(embedding, expected.embedding, tolerance, what + " embedding");
  check_close(saliency, expected.saliency, tolerance, what + " saliency");
  check_close(answers.task, expected.task, tolerance, what + " task");
}

DESAP_CASE(head_against_float64) {
  const HeadShape shapes[] = {{17, 48, 3, 40, true, 5, 4},  {33, 128, 2, 72, true, 3, 6}, {21, 80, 1, 24, true, 7, 5}, {19, 60, 3, 33, false, 4, 5},
                              {34, 128, 1, 64, false, 1, 8}, {2, 32, 1, 16, true, 2, 1},   {1, 72, 3, 20, false, 2, 1}, {49, 288, 3, 65, true, 18, 9}};
  for (const HeadShape& shape : shapes) {
    const std::string what = std::to_string(shape.tokens) + " tokens, " + std::to_string(shape.heads) + " heads of " + std::to_string(shape.width / shape.heads);
    const RandomWeights weights(shape);
    for (Encoding encoding : encodings) check_head(machine, weights, shape, encoding, what + ", encoding " + std::to_string(static_cast<int>(encoding)));
  }
}

// Weights of any magnitude: heads that differ by powers of ten, and outputs far outside of binary16.
DESAP_CASE(head_weights_of_any_magnitude) {
  const HeadShape shape{33, 96, 3, 40, true, 5, 6};
  RandomWeights weights(shape);
  const auto scale = [&](Floats& matrix, Floats& bias, int64_t head, float factor) {
    const int64_t size = shape.width / shape.heads;
    for (int64_t i = head * size; i < (head + 1) * size; i++) {
      for (int64_t j = 0; j < shape.width; j++) matrix[static_cast<size_t>(i * shape.width + j)] *= factor;
      bias[static_cast<size_t>(i)] *= factor;
    }
  };
  for (int64_t h = 0; h < 3; h++) {
    scale(weights.v, weights.v_bias, h, h == 0 ? 1e6f : h == 1 ? 1e-7f : 3e3f);
    scale(weights.k, weights.k_bias, h, h == 0 ? 1e-6f : 1);
  }
  check_head(machine, weights, shape, Encoding::qq, "v of 1e6 and 1e-7");
  for (float& x : weights.out) x *= 1e-9f;
  for (float& x : weights.out_bias) x *= 1e-3f;
  for (float& x : weights.projection) x *= 1e12f;
  check_head(machine, weights, shape, Encoding::kk, "projections of 1e-9 and 1e12");
}

// Images of unequal size, half and float, whose questions differ in every option: one call, several graphs.
DESAP_CASE(head_mixed_batch) {
  const HeadShape shape{33, 96, 2, 40, true, 7, 6};
  const RandomWeights weights(shape);
  const RandomImages images(shape, 6);
  const std::shared_ptr<Head> head = new_head(machine.one(), weights);
  if (!head) return;
  const int64_t count = 6, patches = shape.patches();
  std::vector<HiddenStates> states = images.states();
  std::vector<PruneRequest> requests = images.requests();
  std::vector<uint16_t> half(static_cast<size_t>(shape.tokens * shape.width));
  check(convert_to_half(machine.one(), images.image(2), static_cast<int64_t>(half.size()), half.data()).good(), "half");
  const Floats map = Random(5).floats(patches), rows = Random(6).floats(patches * shape.width), query = Random(7).floats(shape.embedding);
  states[1].tokens -= 6;
  states[2] = {half.data(), true, shape.tokens, nullptr};
  states[5].tokens = 20;
  requests[0].text.rows = 3, requests[0].end_of_text = 1;
  requests[1].query = query.data();
  requests[3].saliency = map.data(), requests[3].alignment = Alignment::mean;
  requests[4].features = {rows.data(), patches, shape.width, shape.width}, requests[4].merge = false, requests[4].lambda = 2;
  requests[5].task_keep = requests[5].keep;

  Answers alone(shape, count), together(shape, count);
  const std::vector<PruneOutput> one_by_one = alone.outputs(), at_once = together.outputs();
  std::vector<std::shared_ptr<Analysis>> all(6);
  check(head->analyze(machine.one(), states.data(), count, Encoding::qq, nullptr, all.data()).good(), "analyze together");
  for (size_t i = 0; i < 6; i++) {
    const size_t size = static_cast<size_t>(states[i].tokens * shape.embedding);
    std::shared_ptr<Analysis> one;
    check(head->analyze(machine.one(), &states[i], 1, Encoding::qq, nullptr, &one).good(), "analyze one");
    Floats a(size, NAN), b(size, NAN), s(static_cast<size_t>(one->patches()), NAN), t(s);
    check(read_embeddings(*one, a.data()).good() && read_embeddings(*all[i], b.data()).good() && a == b, "embedding " + std::to_string(i));
    check(one->read_saliency(s.data()).good() && all[i]->read_saliency(t.data()).good() && s == t, "saliency " + std::to_string(i));
    check(all[i]->prune(machine.one(), requests[i], one_by_one[i], nullptr).good(), "prune");
  }
  std::vector<AnalyzeTimings> analyze_times(6);
  std::vector<PruneTimings> prune_times(6);
  check(head->prune(machine.one(), states.data(), count, Encoding::qq, requests.data(), at_once.data(), analyze_times.data(), prune_times.data()).good(), "at once");
  check(alone.bytes() == together.bytes(), "equal bits alone and together");
  for (size_t i = 0; i < 6; i++) {
    const AnalyzeTimings& a = analyze_times[i];
    const PruneTimings& p = prune_times[i];
    check(a.normalize >= 0 && a.project >= 0 && a.attention >= 0 && a.saliency >= 0 && a.read_out >= 0 && p.align >= 0 && p.top_k >= 0, "timings");
  }

  Floats bad = images.hidden;
  const auto spoil = [&](int64_t image, int64_t row) { bad[static_cast<size_t>((image * shape.tokens + row) * shape.width + 3)] = NAN; };
  spoil(4, 5), spoil(1, 9), spoil(1, 11);
  for (size_t i : {size_t{1}, size_t{4}}) states[i].data = bad.data() + static_cast<int64_t>(i) * shape.tokens * shape.width;
  Status status = head->analyze(machine.one(), states.data(), count, Encoding::qq, nullptr, all.data());
  check(is(status, Code::not_finite, "hidden", 9) && status.image == 1, "hidden states at fault");
  states[1].data = images.image(1);
  Floats text = images.text;
  text[static_cast<size_t>((5 * shape.words + 2) * shape.embedding)] = INFINITY;
  requests[5].text.data = text.data() + 5 * shape.words * shape.embedding;
  Floats no_query(query.size(), NAN);
  requests[1].query = no_query.data();
  states[4].data = images.image(4);
  status = head->prune(machine.one(), states.data(), count, Encoding::qq, requests.data(), at_once.data(), nullptr, nullptr);
  check(is(status, Code::not_finite, "endOfText", 0) && status.image == 1, "a query at fault");
  requests[1].query = nullptr;
  status = head->prune(machine.one(), states.data(), count, Encoding::qq, requests.data(), at_once.data(), nullptr, nullptr);
  check(is(status, Code::not_finite, "text", 2) && status.image == 5, "text at fault");
}

// More shapes than a lane keeps graphs, twice over, each time with other data in between.
DESAP_CASE(head_graphs_replay) {
  const HeadShape shape{20, 32, 1, 16, true, 3, 2};
  const RandomWeights weights(shape);
  const RandomImages images(shape, 2);
  const std::shared_ptr<Head> head = new_head(machine.one(), weights);
  if (!head) return;
  std::vector<std::vector<uint8_t>> first;
  for (int round = 0; round < 3; round++) {
    for (int64_t tokens = 3; tokens <= 20; tokens++) {
      std::vector<HiddenStates> states = images.states();
      const std::vector<PruneRequest> requests = images.requests();
      Answers answers(shape, 1), other(shape, 1);
      states[0].tokens = states[1].tokens = tokens;
      const auto prune = [&](size_t i, Answers& to) {
        return head->prune(machine.one(), &states[i], 1, Encoding::qq, &requests[i], to.outputs().data(), nullptr, nullptr).good();
      };
      check(prune(1, other) && prune(0, answers), "prune");
      if (round == 0) first.push_back(answers.bytes());
      check(answers.bytes() == first[static_cast<size_t>(tokens - 3)], "round " + std::to_string(round) + ", " + std::to_string(tokens) + " tokens");
      check(answers.bytes() != other.bytes(), "other data give other results");
    }
  }
}

DESAP_CASE(head_two_threads) {
  const HeadShape shape{25, 64, 2, 32, true, 4, 5};
  const RandomWeights weights(shape);
  const RandomImages images(shape, 2);
  const ContextPointer context = new_context(machine.precision, 2);
  const std::shared_ptr<Head> head = new_head(*context, weights);
  if (!head) return;
  const std::vector<HiddenStates> states = images.states();
  const std::vector<PruneRequest> requests = images.requests();
  std::vector<uint8_t> expected[2];
  bool equal[2] = {true, true};
  const auto run = [&](size_t i) {
    Answers answers(shape, 1);
    std::shared_ptr<Analysis> analysis;
    if (!head->analyze(*context, &states[i], 1, Encoding::qq, nullptr, &analysis).good() || !analysis->prune(*context, requests[i], answers.outputs()[0], nullptr).good()) return std::vector<uint8_t>();
    return answers.bytes();
  };
  for (size_t i : {0, 1}) expected[i] = run(i);
  const auto work = [&](size_t i) {
    for (int round = 0; round < 4; round++) equal[i] = equal[i] && run(i) == expected[i];
  };
  std::thread other(work, 1);
  work(0);
  other.join();
  check(equal[0] && equal[1] && expected[0] != expected[1], "each thread has its own results");
}

// Parts that another encoder could have made: neither embeddings nor global are unit rows.
struct Parts {
  explicit Parts(int64_t patches_, int64_t size_, int64_t width_, uint64_t seed = 3) : patches(patches_), size(size_), width(width_) {
    Random random(seed);
    embeddings = random.floats(patches * size, 3), global = random.floats(size, 0.2f);
    saliency = random.floats(patches), features = random.floats(patches * width);
    text = random.floats(5 * size);
    for (float& x : saliency) x = std::fabs(x);
  }
  AnalysisParts parts(bool with_global, const Hold& hold = nullptr) const {
    AnalysisParts list{};
    list.patch_embeddings = {embeddings.data(), patches, size, size};
    list.global = with_global ? global.data() : nullptr;
    list.saliency = saliency.data();
    list.features = features.data();
    list.width = width;
    list.hold = hold;
    return list;
  }
  PruneRequest request(int64_t keep, int64_t task_keep) const {
    PruneRequest list{};
    list.text = {text.data(), 5, size, size};
    list.end_of_text = 4;
    list.keep = keep;
    list.task_keep = task_keep;
    list.lambda = 0.1f;
    list.merge = true;
    return list;
  }

  int64_t patches, size, width;
  Floats embeddings, global, saliency, features, text;
};

DESAP_CASE(analysis_from_parts) {
  for (const int64_t patches : {1, 17, 150}) {
    const Parts given(patches, 40, 72);
    const int64_t keep = (patches + 2) / 3;
    const reference::Array embeddings = reference::unit_rows({given.embeddings, patches, 40});
    const reference::Array text = reference::unit_rows({given.text, 5, 40});
    reference::Array query(1, 40), mean(1, 40);
    std::copy(text.data.end() - 40, text.data.end(), query.data.begin());
    for (size_t i = 0; i < embeddings.data.size(); i++) mean.data[i % 40] += embeddings.data[i];
    for (bool with_global : {true, false}) {
      const std::string what = std::to_string(patches) + (with_global ? " patches, global" : " patches, mean");
      std::shared_ptr<Analysis> analysis;
      if (!check(Analysis::from(machine.one(), given.parts(with_global), &analysis).good(), what)) continue;
      check(analysis->rows() == patches && analysis->patches() == patches && analysis->width() == 72, what + " shape");
      Floats rows(given.embeddings.size(), NAN), saliency(given.saliency.size(), NAN);
      check(read_embeddings(*analysis, rows.data()).good() && analysis->read_saliency(saliency.data()).good(), what + " read");
      check_close(rows, embeddings.data, 1e-6, what + " embeddings");
      check(saliency == given.saliency, what + " saliency");

      Answers answers({patches, 72, 1, 40, false, 5, keep}, 1);
      check(analysis->prune(machine.one(), given.request(keep, keep / 2), answers.outputs()[0], nullptr).good(), what + " prune");
      const reference::Array global = reference::unit_rows(with_global ? reference::Array(given.global, 1, 40) : mean);
      const reference::Aligned aligned = reference::align(embeddings, text, query, global, Alignment::fcma, 0.1f);
      check_close(answers.task, aligned.task, 1e-5 * aligned.cancellation, what + " task");
      Ints indices(static_cast<size_t>(keep));
      std::vector<uint8_t> source(static_cast<size_t>(keep));
      check(select(machine.one(), answers.task.data(), given.saliency.data(), patches, keep, keep / 2, indices.data(), source.data()).good(), "select");
      check(answers.indices == indices && answers.source == source, what + " selection");
      check_close(answers.tokens, reference::means({given.features, patches, 72}, answers.assignment, keep).data, 3e-6, what + " tokens");
    }
  }
}

// Without a text only the saliency chooses: what task_keep 0 gives with one.
DESAP_CASE(analysis_prunes_without_text) {
  const Parts given(150, 40, 72);
  const HeadShape shape{150, 72, 1, 40, false, 5, 30};
  const RandomWeights weights(HeadShape{151, 72, 3, 40, true, 5, 30});
  const RandomImages images(HeadShape{151, 72, 3, 40, true, 5, 30}, 2);
  const std::shared_ptr<Head> head = new_head(machine.one(), weights);
  std::shared_ptr<Analysis> analyses[2];
  if (!head || !check(Analysis::from(machine.one(), given.parts(true), &analyses[0]).good(), "from")) return;
  check(head->analyze(machine.one(), images.states().data(), 1, Encoding::qq, nullptr, &analyses[1]).good(), "analyze");
  PruneRequest with_text = given.request(30, 0), without = with_text;
  without.text = {nullptr, 0, 0, 0};
  without.end_of_text = 0;
  Answers a(shape, 1), b(shape, 1);
  std::vector<uint8_t> of_head;
  for (const auto& analysis : analyses) {
    std::vector<PruneOutput> outputs = b.outputs();
    outputs[0].task = nullptr;
    PruneTimings timings{};
    check(analysis->prune(machine.one(), with_text, a.outputs()[0], nullptr).good(), "with a text");
    check(analysis->prune(machine.one(), without, outputs[0], &timings).good(), "without");
    check(timings.align == 0 && timings.top_k >= 0 && timings.merge >= 0, "timings");
    check(std::isnan(b.task[0]), "no task scores are written");
    b.task = a.task;
    check(a.bytes() == b.bytes(), "the same selection");
    of_head = b.bytes();
    b.task.assign(b.task.size(), NAN);
  }
  // In one go, beside an image that has a text.
  Answers both(shape, 2);
  std::vector<PruneRequest> requests = {without, images.requests()[1]};
  std::vector<PruneOutput> outputs = both.outputs();
  outputs[0].task = nullptr;
  AnalyzeTimings analyze_times[2];
  check(head->prune(machine.one(), images.states().data(), 2, Encoding::qq, requests.data(), outputs.data(), analyze_times, nullptr).good(), "in one go");
  check(Ints(both.indices.begin(), both.indices.begin() + 30) == b.indices && analyze_times[0].read_out >= 0, "the same in one go");
  check(std::isnan(both.task[0]) && !std::isnan(both.task[150]), "task scores where there is a text");
}

DESAP_CASE(analysis_from_parts_of_half) {
  Parts given(33, 24, 40);
  std::vector<uint16_t> half(given.features.size());
  check(convert_to_half(machine.one(), given.features.data(), static_cast<int64_t>(half.size()), half.data()).good(), "half");
  check(convert_half(machine.one(), half.data(), static_cast<int64_t>(half.size()), given.features.data()).good(), "float");
  AnalysisParts parts[] = {given.parts(true), given.parts(true)};
  parts[1].features = half.data();
  parts[1].half = true;
  Answers answers[] = {Answers({33, 40, 1, 24, false, 5, 8}, 1), Answers({33, 40, 1, 24, false, 5, 8}, 1)};
  for (size_t i = 0; i < 2; i++) {
    std::shared_ptr<Analysis> analysis;
    check(Analysis::from(machine.one(), parts[i], &analysis).good(), "from");
    check(analysis && analysis->prune(machine.one(), given.request(8, 4), answers[i].outputs()[0], nullptr).good(), "prune");
  }
  check(answers[0].bytes() == answers[1].bytes(), "half is its float values");
}

DESAP_CASE(analysis_from_parts_in_place) {
  const Parts given(33, 24, 40);
  const size_t bytes = given.features.size() * sizeof(float);
  char* block = static_cast<char*>(cuda::host_allocate(bytes));
  if (!check(block, "page-locked memory")) return;
  std::memcpy(block, given.features.data(), bytes);
  const auto features_of = [&](const void* features, const Hold& hold) -> const void* {
    AnalysisParts parts = given.parts(true, hold);
    parts.features = features;
    std::shared_ptr<Analysis> analysis;
    return check(Analysis::from(machine.one(), parts, &analysis).good(), "from") ? analysis->features() : nullptr;
  };
  const Hold hold = std::make_shared<int>(0);
  check(features_of(block, hold) == block, "page-locked memory that is held");
  check(features_of(block, nullptr) == nullptr, "nobody holds it");
  check(features_of(given.features.data(), hold) == nullptr, "ordinary memory");
  cuda::host_free(block);
}

DESAP_CASE(analysis_from_parts_not_finite) {
  const auto fails = [&](const char* what, int64_t where, const auto& spoil) {
    Parts given(33, 24, 40);
    spoil(given);
    std::shared_ptr<Analysis> analysis;
    check(is(Analysis::from(machine.one(), given.parts(true), &analysis), Code::not_finite, what, where) && !analysis, what);
  };
  fails("patchEmbeddings", 7, [](Parts& p) { p.embeddings[7 * 24 + 3] = NAN; });
  fails("global", 0, [](Parts& p) { p.global[5] = INFINITY; });
  fails("saliency", 9, [](Parts& p) { p.saliency[9] = p.saliency[20] = NAN; });
  fails("saliency", 32, [](Parts& p) { p.saliency[32] = INFINITY; });
  fails("features", 11, [](Parts& p) { p.features[11 * 40] = p.features[20 * 40] = -INFINITY; });
  const Parts many(65537, 1, 1);
  std::shared_ptr<Analysis> analysis;
  check(is(Analysis::from(machine.one(), many.parts(true), &analysis), Code::unsupported, "tokens", -1), "65537 patches");
}

DESAP_CASE(head_reads_in_place) {
  const HeadShape shape{25, 64, 2, 32, true, 4, 5};
  const RandomWeights weights(shape);
  const RandomImages images(shape, 1);
  const std::shared_ptr<Head> head = new_head(machine.one(), weights);
  const size_t bytes = images.hidden.size() * sizeof(float);
  char* block = static_cast<char*>(cuda::host_allocate(bytes + 64));
  if (!head || !check(block, "page-locked memory")) return;
  Answers plain(shape, 1), pinned(shape, 1);
  const auto run = [&](const void* data, const Hold& hold, Answers& answers) {
    const HiddenStates hidden{data, false, shape.tokens, hold};
    std::shared_ptr<Analysis> analysis;
    check(head->analyze(machine.one(), &hidden, 1, Encoding::qq, nullptr, &analysis).good(), "analyze");
    check(analysis->prune(machine.one(), images.requests()[0], answers.outputs()[0], nullptr).good(), "prune");
    return analysis->features();
  };
  const Hold hold = std::make_shared<int>(0);
  check(run(images.image(0), hold, plain) == nullptr, "ordinary memory is copied");
  for (int64_t offset : {0, 4, 64}) {
    char* data = block + offset;
    std::memcpy(data, images.image(0), bytes);
    const void* features = offset == 4 ? nullptr : data + shape.width * static_cast<int64_t>(sizeof(float));  // 16-byte aligned
    check(run(data, hold, pinned) == features, "page-locked memory is read in place");
    check(pinned.bytes() == plain.bytes(), "with the same result");
    check(run(data, nullptr, pinned) == nullptr, "nobody holds it");
  }
  cuda::host_free(block);
}

DESAP_CASE(head_outlives_its_context) {
  const HeadShape shape{9, 32, 1, 16, true, 2, 3};
  const RandomWeights weights(shape);
  const RandomImages images(shape, 1);
  ContextPointer context = new_context(machine.precision, 1);
  std::shared_ptr<Head> head = new_head(*context, weights);
  if (!head) return;
  std::shared_ptr<Analysis> analysis;
  check(head->analyze(*context, images.states().data(), 1, Encoding::qq, nullptr, &analysis).good(), "analyze");
  Floats before(static_cast<size_t>(shape.tokens * shape.embedding)), after(before);
  check(read_embeddings(*analysis, before.data()).good(), "read");
  context.reset();
  head.reset();
  std::thread([&, last = std::move(analysis)]() mutable {
    check(read_embeddings(*last, after.data()).good() && after == before, "read on another thread");
    last.reset();
  }).join();
}

DESAP_CASE(head_unsupported) {
  const HeadShape wide{3, 130, 1, 8, true, 2, 1}, shape{9, 32, 1, 16, true, 2, 3};
  const RandomWeights weights(wide), good(shape);
  std::shared_ptr<Head> head;
  check(is(Head::create(machine.one(), weights.config, weights.weights(), &head), Code::unsupported, "head size", -1) && !head, "heads of 130");
  head = new_head(machine.one(), good);
  const HiddenStates many{nullptr, false, 65537, nullptr};
  std::shared_ptr<Analysis> analysis;
  check(is(head->analyze(machine.one(), &many, 1, Encoding::qq, nullptr, &analysis), Code::unsupported, "tokens", -1) && !analysis, "65537 tokens");
}

#ifdef DESAP_SIMT
// -------------------------------------------------------------------------------------------------- what can go wrong

bool same_live(const simt::Live& a, const simt::Live& b) {
  return a.allocations == b.allocations && a.bytes == b.bytes && a.streams == b.streams && a.events == b.events &&
         a.graphs == b.graphs && a.executables == b.executables;
}

void arrange(simt::Fault fault, int64_t nth, cudaError_t error) {
  simt::Settings settings = simt::settings();
  settings.fault = fault;
  settings.nth = nth;
  settings.error = error;
  simt::configure(settings);
}
void arrange_nothing() { arrange(simt::Fault::none, 0, cudaSuccess); }

// A context from nothing, a head, an analysis, and what is asked of it; `whole` stops at the first error.
struct Life {
  explicit Life(Precision precision_) : precision(precision_), weights(shape), images(shape, 2) {}
  Life(const Life&) = delete;
  Life& operator=(const Life&) = delete;
  Status whole() {
    DESAP_TRY(cuda::context_create({0, precision, 1}, &context));
    DESAP_TRY(Head::create(*context, weights.config, weights.weights(), &head));
    return work();
  }
  Status work() {
    const std::vector<HiddenStates> states = images.states();
    const std::vector<PruneRequest> requests = images.requests();
    Answers answers(shape, 2);
    std::shared_ptr<Analysis> analyses[2];
    Floats embedding(static_cast<size_t>(shape.tokens * shape.embedding)), y(static_cast<size_t>(shape.words * shape.embedding));
    Linear* packed = nullptr;
    DESAP_TRY(head->analyze(*context, states.data(), 2, Encoding::qq, nullptr, analyses));
    analysis = analyses[1];
    DESAP_TRY(analysis->prune(*context, requests[1], answers.outputs()[1], nullptr));
    DESAP_TRY(read_embeddings(*analysis, embedding.data()));
    DESAP_TRY(head->prune(*context, states.data(), 2, Encoding::qq, requests.data(), answers.outputs().data(), nullptr, nullptr));
    bytes = answers.bytes();
    const Parts given(9, 16, 8);
    DESAP_TRY(Analysis::from(*context, given.parts(false), &analysis));
    DESAP_TRY(unit_rows(*context, requests[0].text, {y.data(), shape.words, shape.embedding, shape.embedding}));
    DESAP_TRY(linear_pack(*context, requests[0].text, nullptr, &packed));
    linear_free(packed);
    return {};
  }
  ~Life() {
    analysis.reset();
    head.reset();
    if (context) cuda::context_destroy(context);
  }

  static constexpr HeadShape shape{9, 32, 1, 16, true, 2, 3};
  const Precision precision;
  const RandomWeights weights;
  const RandomImages images;
  Context* context = nullptr;
  std::shared_ptr<Head> head;
  std::shared_ptr<Analysis> analysis;
  std::vector<uint8_t> bytes;
};

DESAP_CASE(head_out_of_memory_anywhere) {
  if (machine.precision != Precision::fp32) return;
  arrange_nothing();
  Life good(machine.precision);
  check(good.whole().good(), "without a fault");
  for (int64_t nth = 1;; nth++) {
    if (!check(nth < 200, "ends")) break;
    const simt::Live around = simt::live();
    Status status;
    {
      Life life(machine.precision);
      arrange(simt::Fault::allocation, nth, cudaErrorMemoryAllocation);
      status = life.whole();
      arrange_nothing();
      const std::string what = "allocation " + std::to_string(nth);
      check(status.good() || status.code == Code::out_of_memory, what + ": out of memory");
      if (life.head) check(life.work().good() && life.bytes == good.bytes, what + ": the head works on");
    }
    check(same_live(simt::live(), around), "allocation " + std::to_string(nth) + ": nothing is lost");
    if (status.good()) break;
  }
}

// Any call of the driver may refuse, and the context works on; or the card may die, and every later call says so.
DESAP_CASE(head_driver_errors_anywhere) {
  if (machine.precision != Precision::fp32) return;
  for (const cudaError_t error : {cudaErrorLaunchOutOfResources, cudaErrorIllegalAddress}) {
    const bool fatal = error == cudaErrorIllegalAddress;
    for (const simt::Fault fault : {simt::Fault::launch, simt::Fault::call}) {
      for (int64_t nth = 1;; nth++) {
        if (!check(nth < 2000, "ends")) break;
        const std::string what = std::string(fault == simt::Fault::launch ? "launch " : "call ") + std::to_string(nth) + (fatal ? " fatal" : "");
        arrange_nothing();
        const simt::Live around = simt::live();
        Status status;
        {
          Life life(machine.precision);
          arrange(fault, nth, error);
          status = life.whole();
          const bool told = status.code == (fatal ? Code::device_lost : Code::device_failed) || (!life.context && status.code == Code::device_failed);
          check(status.good() || (told && std::strcmp(status.what, cudaGetErrorName(error)) == 0), what + " is told");
          if (fatal && !status.good() && life.head) {
            const Status again = life.work();
            Floats embedding(static_cast<size_t>(Life::shape.tokens * Life::shape.embedding));
            check(again.code == Code::device_lost && std::strcmp(again.what, cudaGetErrorName(error)) == 0, what + ": and again");
            if (life.analysis) check(read_embeddings(*life.analysis, embedding.data()).code == Code::device_lost, what + ": by every call");
          }
          if (!fatal) {
            arrange_nothing();
            if (life.head) check(life.work().good(), what + ": the head works on");
          }
        }
        if (!fatal) check(same_live(simt::live(), around), what + ": nothing is lost");
        if (status.good()) break;
      }
    }
  }
  arrange_nothing();
}

DESAP_CASE(card_availability) {
  const simt::Settings normal = simt::settings();
  const auto with = [&](auto change) {
    simt::Settings settings = normal;
    change(settings);
    simt::configure(settings);
    return cuda::availability();
  };
  check(with([](simt::Settings&) {}).available, "a card");
  check(with([](simt::Settings& s) { s.driver = 0; }).reason == "no NVIDIA driver", "no driver");
  check(with([](simt::Settings& s) { s.driver = 12040; }).reason.find("supports CUDA 12.4, this build needs 13.0") != std::string::npos, "an old driver");
  check(with([](simt::Settings& s) { s.devices = 0; }).reason == "no CUDA device", "no card");
  check(with([](simt::Settings& s) { s.major = 7; s.minor = 5; }).reason.find("(7.5)") != std::string::npos, "an old card");
  check(with([](simt::Settings& s) { s.major = 8; s.minor = 7; }).available, "8.7 runs code for 8.6");
  check(with([](simt::Settings& s) { s.major = 11; s.minor = 0; }).devices.empty(), "nothing runs on 11.0");
  Context* context = nullptr;
  check(cuda::context_create({0, machine.precision, 1}, &context).code == Code::unsupported && !context, "nor is a context made");
  simt::configure(normal);
  check(is(cuda::context_create({5, machine.precision, 1}, &context), Code::device_failed, "cudaErrorInvalidDevice", -1), "no such card");
}
#endif

}  // namespace
}  // namespace desap::test
