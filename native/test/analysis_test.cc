// An analysis from parts, and a pruning without a text.
#include <algorithm>

#include "random_parts.h"
#include "reference_head.h"

namespace desap::test {
namespace {

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
  std::shared_ptr<Head> head;
  check(Head::create(machine.one(), weights.config, weights.weights(), &head).good(), "create");
  std::shared_ptr<Analysis> analyses[2];
  if (!head || !check(Analysis::from(machine.one(), given.parts(true), &analyses[0]).good(), "from")) return;
  check(head->analyze(machine.one(), images.states().data(), 1, Encoding::qq, nullptr, &analyses[1]).good(), "analyze");
  PruneRequest with_text = given.request(30, 0), without = with_text;
  without.text = {nullptr, 0, 0, 0};
  without.end_of_text_row = 0;
  Answers a(shape, 1), b(shape, 1);
  std::vector<uint8_t> of_head;
  for (const auto& analysis : analyses) {
    std::vector<PruneOutput> outputs = b.outputs();
    outputs[0].task = nullptr;
    PruneTimings timings{};
    check(analysis->prune(machine.one(), with_text, a.outputs()[0], nullptr).good(), "with a text");
    check(analysis->prune(machine.one(), without, outputs[0], &timings).good(), "without");
    check(timings.align == 0 && timings.select >= 0 && timings.merge >= 0, "timings");
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
  // Of several the first in the order of the parts.
  fails("saliency", 9, [](Parts& p) { p.features[0] = p.saliency[9] = NAN; });
  fails("global", 0, [](Parts& p) { p.features[0] = p.saliency[9] = p.global[5] = NAN; });
  fails("patchEmbeddings", 7, [](Parts& p) { p.features[0] = p.saliency[9] = p.global[5] = p.embeddings[7 * 24] = NAN; });
}

// Rows that are kept as they are have to be finite, and no more: their squares may leave float32.
DESAP_CASE(analysis_keeps_finite_rows) {
  const auto block = std::make_shared<Floats>(33 * 40);
  Parts given(33, 24, 40);
  *block = given.features;
  AnalysisParts parts = given.parts(true, block);
  parts.features = block->data();
  std::shared_ptr<Analysis> analysis;
  if (!check(Analysis::from(machine.one(), parts, &analysis).good(), "from")) return;
  PruneRequest request = given.request(8, 4);
  request.merge = false;
  Answers answers({33, 40, 1, 24, false, 5, 8}, 1);
  const auto pruned = [&] { return analysis->prune(machine.one(), request, answers.outputs()[0], nullptr); };
  check(pruned().good(), "finite");
  const Ints kept(answers.indices.begin(), answers.indices.end());
  const auto row = [&](Floats& features, size_t k) { return features.data() + kept[k] * 40; };
  Floats others = given.features;
  request.features = {others.data(), 33, 40, 40};
  for (int64_t i = 0; i < 33; i++) {
    if (std::find(kept.begin(), kept.end(), i) == kept.end()) others[static_cast<size_t>(i * 40)] = NAN;
  }
  check(pruned().good(), "rows that are dropped");
  row(others, 0)[39] = 1e25f;
  check(pruned().good() && answers.tokens[39] == 1e25f, "large");
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    row(others, 5)[39] = row(others, 3)[0] = bad;
    check(is(pruned(), Code::not_finite, "features", kept[3]), "the first row at fault");
  }
  // The analysis' own, where they are the caller's memory: a GPU has a copy.
  request.features = {nullptr, 0, 0, 0};
  row(*block, 2)[1] = NAN;
  if (analysis->features() == block->data()) check(is(pruned(), Code::not_finite, "features", kept[2]), "its own");
}

}  // namespace
}  // namespace desap::test
