// What shows on a card of real size only: large shapes against float64, the same bits in 100 runs and whatever the
// batch. Small machines run the same cases on small shapes.
#include <algorithm>

#include "../harness.h"
#include "../reference_head.h"

namespace desap::test {
namespace {

using reference::Array;

// A few of the rows, the first and the last among them.
std::vector<int64_t> sample(int64_t rows, Random& random) {
  std::vector<int64_t> list = {0, rows - 1};
  while (static_cast<int64_t>(list.size()) < std::min<int64_t>(rows, 24)) list.push_back(random.below(rows));
  return list;
}

Floats rows_of(const Floats& x, int64_t cols, const std::vector<int64_t>& rows) {
  Floats part;
  for (int64_t i : rows) part.insert(part.end(), x.begin() + i * cols, x.begin() + (i + 1) * cols);
  return part;
}

std::string text_of(int64_t a, int64_t b) { return std::to_string(a) + " x " + std::to_string(b); }

// Some rows of matrices that fill a card: more than one wave of tiles, tiles that end within a row of blocks.
DESAP_CASE(card_linear) {
  const int64_t large[][3] = {{577, 1024, 1024}, {4096, 1280, 3840}, {36928, 1024, 768}, {1025, 8192, 1000}},
                tiny[][3] = {{65, 128, 72}};
  for (const auto& sizes : large) {
    const auto [rows, in, out] = machine.small() ? tiny[0] : sizes;
    Random random(static_cast<uint64_t>(rows + out));
    const Floats x = random.floats(rows * in), w = random.floats(out * in), b = random.floats(out);
    const Floats y = machine.same<float>(text_of(rows, out), [&, rows = rows, in = in, out = out](Context& context) {
      Linear* packed = nullptr;
      check(linear_pack(context, {w.data(), out, in, in}, b.data(), &packed).good(), "pack");
      Rows result(rows, out);
      check(linear(context, {x.data(), rows, in, in}, *packed, result).good(), "status");
      linear_free(packed);
      return result.dense();
    });
    const std::vector<int64_t> some = sample(rows, random);
    const Array bias(b, 1, out);
    const Array expected =
        reference::linear(Array(rows_of(x, in, some), static_cast<int64_t>(some.size()), in), {w, out, in}, &bias);
    check_close(rows_of(y, out, some), expected.data, machine.tolerance(3e-6), text_of(rows, out));
    if (machine.small()) break;
  }
}

DESAP_CASE(card_attention) {
  const int64_t large[][3] = {{577, 16, 64}, {1025, 16, 64}, {4096, 16, 80}, {16384, 4, 128}, {16384, 3, 72}},
                tiny[][3] = {{65, 2, 64}};
  for (const auto& sizes : large) {
    const auto [tokens, heads, size] = machine.small() ? tiny[0] : sizes;
    const int64_t width = heads * size;
    Random random(static_cast<uint64_t>(tokens + size));
    const Floats q = random.floats(tokens * width), k = random.floats(tokens * width),
                 v = random.floats(tokens * width);
    const std::string what = text_of(tokens, size);
    const auto matrix = [&, tokens = tokens](const Floats& x) { return ConstMatrix{x.data(), tokens, width, width}; };
    const Floats y = machine.same<float>(what, [&, tokens = tokens, heads = heads](Context& context) {
      Rows result(tokens, width);
      check(attention(context, matrix(q), matrix(k), matrix(v), heads, result).good(), "status");
      return result.dense();
    });
    const std::vector<int64_t> some = sample(tokens, random);
    const Array queries(rows_of(q, width, some), static_cast<int64_t>(some.size()), width);
    const Array expected = reference::attention(queries, {k, tokens, width}, {v, tokens, width}, heads);
    check_close(rows_of(y, width, some), expected.data, machine.tolerance(5e-6), what);
    if (machine.small()) break;
  }
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

DESAP_CASE(card_head) {
  HeadShape shapes[] = {llava, llava, llava};
  shapes[1].tokens = 1025, shapes[1].words = 77;
  shapes[2].tokens = 1024, shapes[2].class_token = false;
  if (machine.small()) {
    std::fill_n(shapes, 3, small_head);
    shapes[1].words = 77;
    shapes[2].class_token = false;
  }
  for (const HeadShape& shape : shapes) {
    const std::string what = std::to_string(shape.tokens) + " tokens, " + std::to_string(shape.words) + " words";
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
    const Array features(Floats(images.hidden.end() - shape.patches() * shape.width, images.hidden.end()),
                         shape.patches(), shape.width);
    check_close(answers.tokens, reference::means(features, answers.assignment, shape.keep).data, 3e-6,
                what + " tokens");
  }
}

DESAP_CASE(card_same_bits_in_100_runs) {
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

DESAP_CASE(card_same_bits_in_any_batch) {
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
