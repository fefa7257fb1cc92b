// The head on a GPU: against float64 in every shape of head and encoding, batches, replayed graphs, threads, memory that the
// GPU reads in place, and what shows on a GPU of real size only: the same bits in 100 runs and whatever the batch.
#include <algorithm>
#include <thread>

#include "../../cuda/context.h"
#include "../reference_head.h"

namespace desap::test {
namespace {

constexpr Encoding encodings[] = {Encoding::qq, Encoding::kk, Encoding::vv, Encoding::qk};

using ContextPointer = std::shared_ptr<Context>;

ContextPointer new_context(Precision precision, int streams) {
  Context* context = nullptr;
  const int gpu = cuda::availability().devices[0].index;
  if (!check(cuda::context_create({gpu, precision, streams}, &context).good(), "context")) return nullptr;
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
  const size_t size = static_cast<size_t>(shape.rows * shape.width);
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
    const std::string what = std::to_string(shape.rows) + " rows, " + std::to_string(shape.heads) + " heads of " + std::to_string(shape.width / shape.heads);
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
  std::vector<uint16_t> half(static_cast<size_t>(shape.rows * shape.width));
  check(convert_to_half(machine.one(), images.image(2), static_cast<int64_t>(half.size()), half.data()).good(), "half");
  const Floats map = Random(5).floats(patches), rows = Random(6).floats(patches * shape.width), query = Random(7).floats(shape.projection_dim);
  states[1].rows -= 6;
  states[2] = {half.data(), true, shape.rows, nullptr};
  states[5].rows = 20;
  requests[0].text.rows = 3, requests[0].end_of_text_row = 1;
  requests[1].end_of_text = query.data();
  requests[3].saliency = map.data(), requests[3].alignment = Alignment::mean;
  requests[4].features = {rows.data(), patches, shape.width, shape.width}, requests[4].merge = false, requests[4].lambda = 2;
  requests[5].task_keep = requests[5].keep;
  requests[2].task = map.data();

  Answers alone(shape, count), together(shape, count);
  const std::vector<PruneOutput> one_by_one = alone.outputs(), at_once = together.outputs();
  std::vector<std::shared_ptr<Analysis>> all(6);
  check(head->analyze(machine.one(), states.data(), count, Encoding::qq, nullptr, all.data()).good(), "analyze together");
  for (size_t i = 0; i < 6; i++) {
    const size_t size = static_cast<size_t>(states[i].rows * shape.projection_dim);
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
    check(a.normalize >= 0 && a.project >= 0 && a.attention >= 0 && a.saliency >= 0 && a.read_out >= 0 && p.align >= 0 && p.select >= 0, "timings");
  }

  Floats bad = images.hidden;
  const auto spoil = [&](int64_t image, int64_t row) { bad[static_cast<size_t>((image * shape.rows + row) * shape.width + 3)] = NAN; };
  spoil(4, 5), spoil(1, 9), spoil(1, 11);
  for (size_t i : {size_t{1}, size_t{4}}) states[i].data = bad.data() + static_cast<int64_t>(i) * shape.rows * shape.width;
  Status status = head->analyze(machine.one(), states.data(), count, Encoding::qq, nullptr, all.data());
  check(is(status, Code::not_finite, "hidden", 9) && status.image == 1, "hidden states at fault");
  states[1].data = images.image(1);
  Floats text = images.text;
  text[static_cast<size_t>((5 * shape.text_tokens + 2) * shape.projection_dim)] = INFINITY;
  requests[5].text.data = text.data() + 5 * shape.text_tokens * shape.projection_dim;
  Floats no_query(query.size(), NAN);
  requests[1].end_of_text = no_query.data();
  states[4].data = images.image(4);
  status = head->prune(machine.one(), states.data(), count, Encoding::qq, requests.data(), at_once.data(), nullptr, nullptr);
  check(is(status, Code::not_finite, "endOfText", 0) && status.image == 1, "a query at fault");
  requests[1].end_of_text = nullptr;
  status = head->prune(machine.one(), states.data(), count, Encoding::qq, requests.data(), at_once.data(), nullptr, nullptr);
  check(is(status, Code::not_finite, "text", 2) && status.image == 5, "text at fault");
  Floats no_map = map;
  no_map[17] = NAN;
  requests[2].task = no_map.data();
  status = head->prune(machine.one(), states.data(), count, Encoding::qq, requests.data(), at_once.data(), nullptr, nullptr);
  check(is(status, Code::not_finite, "task", 17) && status.image == 2, "a task map at fault");
}

// More shapes than a stream keeps graphs, twice over, each time with other data in between.
DESAP_CASE(head_graphs_replay) {
  const HeadShape shape{20, 32, 1, 16, true, 3, 2};
  const RandomWeights weights(shape);
  const RandomImages images(shape, 2);
  const std::shared_ptr<Head> head = new_head(machine.one(), weights);
  if (!head) return;
  std::vector<std::vector<uint8_t>> first;
  for (int round = 0; round < 3; round++) {
    for (int64_t rows = 3; rows <= 20; rows++) {
      std::vector<HiddenStates> states = images.states();
      const std::vector<PruneRequest> requests = images.requests();
      Answers answers(shape, 1), other(shape, 1);
      states[0].rows = states[1].rows = rows;
      const auto prune = [&](size_t i, Answers& to) {
        return head->prune(machine.one(), &states[i], 1, Encoding::qq, &requests[i], to.outputs().data(), nullptr, nullptr).good();
      };
      check(prune(1, other) && prune(0, answers), "prune");
      if (round == 0) first.push_back(answers.bytes());
      check(answers.bytes() == first[static_cast<size_t>(rows - 3)], "round " + std::to_string(round) + ", " + std::to_string(rows) + " rows");
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

// A map in place of the text's own gives the same, with the text and without; what else the text gives does not change.
DESAP_CASE(head_task_map) {
  const HeadShape shape{25, 64, 2, 32, true, 4, 5};
  const RandomWeights weights(shape);
  const RandomImages images(shape, 1);
  const std::shared_ptr<Head> head = new_head(machine.one(), weights);
  if (!head) return;
  std::shared_ptr<Analysis> analysis;
  check(head->analyze(machine.one(), images.states().data(), 1, Encoding::qq, nullptr, &analysis).good(), "analyze");
  const size_t pairs = static_cast<size_t>(shape.patches() * shape.text_tokens);
  Answers own(shape, 1), given(shape, 1);
  Floats similarity(pairs, NAN), again(pairs, NAN);
  PruneRequest request = images.requests()[0];
  std::vector<PruneOutput> to_own = own.outputs(), to_given = given.outputs();
  to_own[0].matrices.similarity = similarity.data();
  check(analysis->prune(machine.one(), request, to_own[0], nullptr).good(), "its own");
  request.task = own.task.data();
  for (const bool text : {true, false}) {
    for (const bool matrices : {true, false}) {
      if (!text) request.text = {};
      given = Answers(shape, 1), to_given[0] = given.outputs()[0], to_given[0].matrices.similarity = text && matrices ? again.data() : nullptr;
      check(analysis->prune(machine.one(), request, to_given[0], nullptr).good() && given.bytes() == own.bytes(), "the same map");
      check(!text || !matrices || again == similarity, "the same matrices");
    }
  }
  Floats other(own.task.size());
  for (size_t i = 0; i < other.size(); i++) other[i] = static_cast<float>(i);
  request.task = other.data(), request.task_keep = request.keep;
  check(analysis->prune(machine.one(), request, to_given[0], nullptr).good() && given.indices.back() == shape.patches() - 1 && given.task == other, "another map");
  other[3] = NAN;
  check(is(analysis->prune(machine.one(), request, to_given[0], nullptr), Code::not_finite, "task", 3), "a map that is not finite");
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
    const HiddenStates hidden{data, false, shape.rows, hold};
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
  Floats before(static_cast<size_t>(shape.rows * shape.projection_dim)), after(before);
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
  check(is(head->analyze(machine.one(), &many, 1, Encoding::qq, nullptr, &analysis), Code::unsupported, "rows", -1) && !analysis, "65537 rows");
}

const HeadShape small_head{33, 128, 2, 72, true, 7, 9};

// Whether all patches are kept whose score is so far above the cut that no rounding may lose them.
bool keeps_the_certain(const Answers& answers, const Doubles& task, int64_t k, double margin) {
  Doubles sorted = task;
  std::sort(sorted.rbegin(), sorted.rend());
  const double largest = std::fmax(std::fabs(sorted.front()), std::fabs(sorted.back()));
  const double certain =
      k < static_cast<int64_t>(task.size()) ? sorted[static_cast<size_t>(k)] + margin * largest : -INFINITY;
  std::vector<bool> kept(task.size());
  for (size_t j = 0; j < answers.indices.size(); j++) {
    if (answers.source[j] == 0) kept[static_cast<size_t>(answers.indices[j])] = true;
  }
  for (size_t i = 0; i < task.size(); i++) {
    if (task[i] > certain && !kept[i]) return false;
  }
  return true;
}

DESAP_CASE(head_large) {
  HeadShape shapes[] = {llava, llava, llava};
  shapes[1].rows = 1025, shapes[1].text_tokens = 77;
  shapes[2].rows = 1024, shapes[2].class_token = false;
  if (machine.small()) {
    std::fill_n(shapes, 3, small_head);
    shapes[1].text_tokens = 77;
    shapes[2].class_token = false;
  }
  for (const HeadShape& shape : shapes) {
    const std::string what = std::to_string(shape.rows) + " rows, " + std::to_string(shape.text_tokens) + " text tokens";
    const RandomWeights weights(shape);
    const RandomImages images(shape, 1);
    const HeadReference expected = head_reference(weights, shape, images.image(0), images.text.data(), Encoding::qq);
    std::shared_ptr<Head> head;
    if (!check(Head::create(machine.one(), weights.config, weights.weights(), &head).good(), "create")) return;
    std::shared_ptr<Analysis> analysis;
    if (!check(head->analyze(machine.one(), images.states().data(), 1, Encoding::qq, nullptr, &analysis).good(),
               "analyze"))
      return;
    Floats embedding(expected.embedding.size(), NAN), saliency(expected.saliency.size(), NAN);
    check(read_embeddings(*analysis, embedding.data()).good() && analysis->read_saliency(saliency.data()).good(), "read");
    check_close(embedding, expected.embedding, machine.tolerance(2e-5), what + " embedding");
    check_close(saliency, expected.saliency, machine.tolerance(2e-5), what + " saliency");
    Answers answers(shape, 1);
    check(analysis->prune(machine.one(), images.requests()[0], answers.outputs()[0], nullptr).good(), "prune");
    check_close(answers.task, expected.task, machine.tolerance(2e-5), what + " task");
    check(keeps_the_certain(answers, expected.task, shape.keep / 2, machine.tolerance(4e-5)), what + " kept");
    const reference::Array features(Floats(images.hidden.end() - shape.patches() * shape.width, images.hidden.end()),
                         shape.patches(), shape.width);
    check_close(answers.tokens, reference::means(features, answers.assignment, shape.keep).data, 3e-6,
                what + " tokens");
  }
}

DESAP_CASE(head_same_bits_in_100_runs) {
  const HeadShape shape = machine.small() ? small_head : llava;
  const RandomWeights weights(shape);
  const RandomImages images(shape, machine.small() ? 2 : 5);
  std::shared_ptr<Head> head;
  if (!check(Head::create(machine.one(), weights.config, weights.weights(), &head).good(), "create")) return;
  std::vector<uint8_t> first;
  bool equal = true;
  for (int run = 0; run < (machine.small() ? 4 : 100); run++) {
    Answers answers(shape, images.count);
    check(head->prune(machine.one(), images.states().data(), images.count, Encoding::qq, images.requests().data(),
                      answers.outputs().data(), nullptr, nullptr)
              .good(),
          "prune");
    if (run == 0) first = answers.bytes();
    equal = equal && answers.bytes() == first;
  }
  check(equal, "equal bits in every run");
}

DESAP_CASE(head_same_bits_in_any_batch) {
  const HeadShape shape = machine.small() ? small_head : llava;
  const RandomWeights weights(shape);
  const RandomImages images(shape, machine.small() ? 5 : 64);
  std::shared_ptr<Head> head;
  if (!check(Head::create(machine.one(), weights.config, weights.weights(), &head).good(), "create")) return;
  const std::vector<HiddenStates> states = images.states();
  const std::vector<PruneRequest> requests = images.requests();
  Answers all(shape, images.count), each(shape, images.count);
  const std::vector<PruneOutput> outputs = all.outputs(), single = each.outputs();
  check(head->prune(machine.one(), states.data(), images.count, Encoding::qq, requests.data(), outputs.data(), nullptr,
                    nullptr)
            .good(),
        "together");
  for (int64_t i = 0; i < images.count; i++) {
    check(head->prune(machine.one(), &states[static_cast<size_t>(i)], 1, Encoding::qq,
                      &requests[static_cast<size_t>(i)], &single[static_cast<size_t>(i)], nullptr, nullptr)
              .good(),
          "alone");
  }
  check(all.bytes() == each.bytes(), "an image alone gives the same bits as among " + std::to_string(images.count));
}

}  // namespace
}  // namespace desap::test
