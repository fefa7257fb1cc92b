// Speed of the kernels on LLaVA-1.5's shape, beside the processor's own multiply-add peak in the same run.
//
//   desap_native_bench [rounds]      N 577, D 1024, H 16, E 768, T 30, K 64; medians
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "../cpu/context.h"
#include "../head.h"
#include "harness.h"
#include "peak.h"

namespace desap::test {
namespace {

using Clock = std::chrono::steady_clock;

struct Series {
  std::vector<double> values;
  void add(double x) { values.push_back(x); }
  double median() {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  }
  double best() { return *std::min_element(values.begin(), values.end()); }
};

template <class Body>
double milliseconds(const Body& body) {
  const auto start = Clock::now();
  body();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void require(const Status& status) {
  if (status.good()) return;
  std::fprintf(stderr, "failed: %s\n", status.what ? status.what : "");
  std::exit(1);
}

constexpr int64_t rows = 577, width = 1024, heads = 16, projection_dim = 768, text_tokens = 30, keep = 64;

void run(Isa isa, int threads, int rounds) {
  Context* context = nullptr;
  require(context_create({threads, isa}, &context));
  Random random(1);
  const float spread = 1.0f / 32;  // 1 / sqrt(D): activations keep their size
  const Floats w = random.floats(width * width, spread), b = random.floats(width, 0.1f), p = random.floats(projection_dim * width, spread);
  const Floats ones(width, 1.0f), x = random.floats(rows * width), text = random.floats(text_tokens * projection_dim);

  Linear* packed = nullptr;
  require(linear_pack(*context, {w.data(), width, width, width}, b.data(), &packed));
  Rows a(x, rows, width, 16), q(rows, width, 16), y(rows, width, 16);
  require(linear(*context, a, *packed, q));

  const HeadWeights weights{ones.data(), b.data(), w.data(), b.data(), w.data(), b.data(), w.data(), b.data(), w.data(), b.data(), ones.data(), b.data(), p.data()};
  std::shared_ptr<Head> head;
  require(Head::create(*context, {width, heads, projection_dim, true, 1e-5f}, weights, &head));
  const HiddenStates image{x.data(), false, rows, std::make_shared<int>(0)};
  const int64_t patches = rows - 1;
  Floats kept(keep * width), task(patches), map(rows);
  Ints indices(keep), assignment(patches), counts_(keep);
  std::vector<uint8_t> source(keep);

  Series peaks, linears, attentions, saliencies, analyses, stages[5], prunes[3], pruned;
  for (int i = 0; i < rounds; i++) {
    if (i % 4 == 0) peaks.add(multiply_add_peak(isa, threads));
    linears.add(milliseconds([&] { require(linear(*context, a, *packed, y)); }));
    attentions.add(milliseconds([&] { require(attention(*context, q, q, y, heads, a)); }));
    if (threads == 1 && i < 3) saliencies.add(milliseconds([&] { require(saliency(*context, q, q, heads, false, {}, map.data())); }));
    std::shared_ptr<Analysis> analysis;
    analyses.add(milliseconds([&] { require(head->analyze(*context, &image, 1, Encoding::qq, nullptr, &analysis)); }));
    const AnalyzeTimings& t = analysis->timings();
    const double parts[] = {t.normalize, t.project, t.attention, t.saliency, t.read_out};
    for (int s = 0; s < 5; s++) stages[s].add(parts[s]);
    PruneTimings u;
    const PruneRequest request{{text.data(), text_tokens, projection_dim, projection_dim}, nullptr, text_tokens - 1, keep, keep / 2, Alignment::fcma, 0.1f, nullptr, nullptr, true, {nullptr, 0, 0, 0}, Complement::saliency, {nullptr, 0, 0, 0}};
    pruned.add(milliseconds([&] {
      require(analysis->prune(*context, request, {kept.data(), indices.data(), source.data(), assignment.data(), counts_.data(), task.data(), nullptr, {}}, &u));
    }));
    const double more[] = {u.align, u.select, u.merge};
    for (int s = 0; s < 3; s++) prunes[s].add(more[s]);
  }

  const double linear_flops = 2.0 * rows * width * width / 1e6, attention_flops = 4.0 * rows * rows * width / 1e6;
  std::printf("%s, %d thread%s: multiply-add peak %.1f GFLOP/s%s\n", isa_name(isa), threads, threads > 1 ? "s" : "", peaks.median(),
              isa == Isa::scalar ? " (of the baseline's 4 lanes)" : "");
  std::printf("  linear     %7.2f ms  %6.1f GFLOP/s  (best %.2f ms, %.1f)\n", linears.median(), linear_flops / linears.median(), linears.best(), linear_flops / linears.best());
  std::printf("  attention  %7.2f ms  %6.1f GFLOP/s  (best %.2f ms, %.1f)\n", attentions.median(), attention_flops / attentions.median(), attentions.best(), attention_flops / attentions.best());
  if (threads == 1) std::printf("  saliency without class token %.2f ms\n", saliencies.median());
  std::printf("  analyze    %7.2f ms  (best %.2f): normalize %.2f, project %.2f, attention %.2f, saliency %.2f, read-out %.2f\n", analyses.median(), analyses.best(),
              stages[0].median(), stages[1].median(), stages[2].median(), stages[3].median(), stages[4].median());
  std::printf("  prune      %7.2f ms  (best %.2f): align %.2f, select %.3f, merge %.2f\n", pruned.median(), pruned.best(), prunes[0].median(), prunes[1].median(), prunes[2].median());
  linear_free(packed);
  head.reset();
  context_destroy(context);
}

}  // namespace
}  // namespace desap::test

int main(int argc, char** argv) {
  using namespace desap;
  const int rounds = argc > 1 ? std::max(3, std::atoi(argv[1])) : 25;
  Isa isas[isa_count];
  const int count = supported_isas(isas);
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 0; i < count; i++) {
    for (int threads = 1; threads <= cores; threads *= 2) test::run(isas[i], threads, isas[i] == Isa::scalar ? 3 : rounds);
  }
}
