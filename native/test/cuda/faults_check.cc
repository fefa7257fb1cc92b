// What can go wrong, arranged in the emulation: every allocation, every launch, every call of the driver (of those every seventh,
// without DESAP_LONG).
#ifdef DESAP_SIMT
#include "../../cuda/context.h"
#include "../random_block.h"
#include "../random_head.h"
#include "../simt/simt_control.h"
#include "../random_parts.h"

#include <cstdlib>

namespace desap::test {
namespace {

bool same_live(const simt::Live& a, const simt::Live& b) {
  return a.allocations == b.allocations && a.bytes == b.bytes && a.streams == b.streams && a.events == b.events &&
         a.graphs == b.graphs && a.executables == b.executables;
}

void arrange(simt::Fault fault, int64_t nth, cudaError_t error, const char* function = "") {
  simt::Settings settings = simt::settings();
  settings.fault = fault;
  settings.nth = nth;
  settings.error = error;
  settings.function = function;
  simt::configure(settings);
}
void arrange_nothing() { arrange(simt::Fault::none, 0, cudaSuccess); }

// A context from nothing, a head, an analysis, and what is asked of it; `whole` stops at the first error.
struct LifeOfHead {
  explicit LifeOfHead(Precision precision_) : precision(precision_), weights(shape), images(shape, 2) {}
  LifeOfHead(const LifeOfHead&) = delete;
  LifeOfHead& operator=(const LifeOfHead&) = delete;
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
    Floats embedding(static_cast<size_t>(shape.rows * shape.projection_dim)), y(static_cast<size_t>(shape.text_tokens * shape.projection_dim));
    Linear* packed = nullptr;
    DESAP_TRY(head->analyze(*context, states.data(), 2, Encoding::qq, nullptr, analyses));
    analysis = analyses[1];
    DESAP_TRY(analysis->prune(*context, requests[1], answers.outputs()[1], nullptr));
    DESAP_TRY(read_embeddings(*analysis, embedding.data()));
    DESAP_TRY(head->prune(*context, states.data(), 2, Encoding::qq, requests.data(), answers.outputs().data(), nullptr, nullptr));
    bytes = answers.bytes();
    const Parts given(9, 16, 8);
    DESAP_TRY(Analysis::from(*context, given.parts(false), &analysis));
    DESAP_TRY(unit_rows(*context, requests[0].text, {y.data(), shape.text_tokens, shape.projection_dim, shape.projection_dim}));
    DESAP_TRY(linear_pack(*context, requests[0].text, nullptr, &packed));
    linear_free(packed);
    return {};
  }
  bool made() const { return head != nullptr; }
  // What else a dead GPU has to refuse.
  bool lost() const {
    Floats embedding(static_cast<size_t>(shape.rows * shape.projection_dim));
    return !analysis || read_embeddings(*analysis, embedding.data()).code == Code::device_lost;
  }
  ~LifeOfHead() {
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

// The same with a block: a sequence of each kind, with tables and a read-out, and all that can be asked.
struct LifeOfBlock {
  explicit LifeOfBlock(Precision precision_) : precision(precision_), weights({32, 1, Norm::rms, true, 20}), hidden(Random(2).floats(16 * 32)), rotary(7, 32, 3) {}
  LifeOfBlock(const LifeOfBlock&) = delete;
  LifeOfBlock& operator=(const LifeOfBlock&) = delete;
  Status whole() {
    DESAP_TRY(cuda::context_create({0, precision, 1}, &context));
    DESAP_TRY(Block::create(*context, weights.config, weights.weights(), &block));
    return work();
  }
  Status work() {
    const Ints unit = {0, 1, 2, 0, 1, 2, 0, 1, 2};
    const BlockStates states[] = {{{hidden.data(), false, 9, nullptr}, {}, unit.data(), 3}, {{hidden.data() + 9 * 32, false, 7, nullptr}, rotary.tables(), unit.data(), 3}};
    Floats out(2 * (3 * 9 * 32 + 2 * 9 + 3 + 32), NAN);
    BlockOutput outputs[2];
    float* at = out.data();
    const auto take = [&](int64_t count) { return at += count, at - count; };
    outputs[0] = {take(9 * 32), take(9 * 32), take(9), take(3), take(9 * 32), take(32), take(9)};
    outputs[1] = {take(7 * 32), nullptr, take(7), take(3), nullptr, nullptr, nullptr};
    DESAP_TRY(block->analyze(*context, states, 2, Encoding::qk, outputs, nullptr));
    bytes.resize(out.size() * sizeof(float));
    std::memcpy(bytes.data(), out.data(), bytes.size());
    return {};
  }
  bool made() const { return block != nullptr; }
  bool lost() const { return true; }
  ~LifeOfBlock() {
    block.reset();
    if (context) cuda::context_destroy(context);
  }

  const Precision precision;
  const RandomBlock weights;
  const Floats hidden;
  const RandomRotary rotary;
  Context* context = nullptr;
  std::shared_ptr<Block> block;
  std::vector<uint8_t> bytes;
};

template <class Life>
void out_of_memory_anywhere(const Machine& machine) {
  if (machine.precision != Precision::fp32) return;
  arrange_nothing();
  Life good(machine.precision);
  check(good.whole().good(), "without a fault");
  for (int64_t nth = 1;; nth++) {
    if (!check(nth < 200, "ends")) break;
    const simt::Live around = simt::live();
    bool failed = false;
    {
      Life life(machine.precision);
      arrange(simt::Fault::allocation, nth, cudaErrorMemoryAllocation);
      const Status status = life.whole();
      failed = simt::failed();
      arrange_nothing();
      const std::string what = "allocation " + std::to_string(nth);
      check(status.good() || status.code == Code::out_of_memory, what + ": out of memory");
      if (life.made()) check(life.work().good() && life.bytes == good.bytes, what + ": it works on");
    }
    check(same_live(simt::live(), around), "allocation " + std::to_string(nth) + ": nothing is lost");
    if (!failed) break;
  }
}

DESAP_CASE(faults_out_of_memory_anywhere) { out_of_memory_anywhere<LifeOfHead>(machine); }
DESAP_CASE(faults_out_of_memory_anywhere_in_a_block) { out_of_memory_anywhere<LifeOfBlock>(machine); }

// Any launch and any call of the driver may refuse, and the context works on; or the GPU may die, and every later call says so.
template <class Life>
void driver_refuses_anywhere(const Machine& machine) {
  if (machine.precision != Precision::fp32) return;
  for (const cudaError_t error : {cudaErrorLaunchOutOfResources, cudaErrorIllegalAddress}) {
    const bool fatal = error == cudaErrorIllegalAddress;
    for (const simt::Fault fault : {simt::Fault::launch, simt::Fault::call}) {
      // Most calls are alike.
      const int64_t step = fault == simt::Fault::call && !std::getenv("DESAP_LONG") ? 7 : 1;
      for (int64_t nth = 1 + (fatal ? step / 2 : 0);; nth += step) {
        if (!check(nth < 2000, "ends")) break;
        const std::string what = std::string(fault == simt::Fault::launch ? "launch " : "call ") + std::to_string(nth) + (fatal ? " fatal" : "");
        arrange_nothing();
        const simt::Live around = simt::live();
        bool failed = false;
        {
          Life life(machine.precision);
          arrange(fault, nth, error);
          const Status status = life.whole();
          failed = simt::failed();
          const bool told = status.code == (fatal ? Code::device_lost : Code::device_failed) || (!life.context && status.code == Code::device_failed);
          check(status.good() || (told && std::strcmp(status.what, cudaGetErrorName(error)) == 0), what + " is told");
          if (fatal && !status.good() && life.made()) {
            const Status again = life.work();
            check(again.code == Code::device_lost && std::strcmp(again.what, cudaGetErrorName(error)) == 0, what + ": and again");
            check(life.lost(), what + ": by every call");
          }
          if (!fatal) {
            arrange_nothing();
            if (life.made()) check(life.work().good(), what + ": it works on");
          }
        }
        if (!fatal) check(same_live(simt::live(), around), what + ": nothing is lost");
        if (!failed) break;
      }
    }
  }
  arrange_nothing();
}

DESAP_CASE(faults_of_the_driver_anywhere) { driver_refuses_anywhere<LifeOfHead>(machine); }
DESAP_CASE(faults_of_the_driver_anywhere_in_a_block) { driver_refuses_anywhere<LifeOfBlock>(machine); }

// Calls in whose refusal something could be left behind, each time they are made: a stream in its capture, memory of a GPU that is not
// entered.
DESAP_CASE(faults_of_calls_that_clean_up) {
  if (machine.precision != Precision::fp32) return;
  arrange_nothing();
  for (const char* function : {"cudaStreamEndCapture", "cudaSetDevice"}) {
    for (int64_t nth = 1;; nth++) {
      if (!check(nth < 2000, "ends")) break;
      const std::string what = std::string(function) + " " + std::to_string(nth);
      const simt::Live around = simt::live();
      {
        LifeOfHead life(machine.precision);
        arrange(simt::Fault::call, nth, cudaErrorLaunchOutOfResources, function);
        life.whole();
        if (simt::failed()) {
          arrange_nothing();
          if (life.made()) check(life.work().good(), what + ": it works on");
        }
      }  // where nothing was refused yet, something may be while all is given back
      const bool refused = simt::failed() || simt::settings().fault == simt::Fault::none;
      arrange_nothing();
      check(same_live(simt::live(), around), what + ": nothing is lost");
      if (!refused) break;
    }
  }
  const simt::Live around = simt::live();
  void* const block = cuda::host_allocate(4096);
  check(block != nullptr, "page-locked memory");
  arrange(simt::Fault::call, 1, cudaErrorLaunchOutOfResources, "cudaSetDevice");
  cuda::host_free(block);
  arrange_nothing();
  check(same_live(simt::live(), around), "page-locked memory: nothing is lost");
}

DESAP_CASE(gpu_availability) {
  const simt::Settings normal = simt::settings();
  const auto with = [&](auto change) {
    simt::Settings settings = normal;
    change(settings);
    simt::configure(settings);
    return cuda::availability();
  };
  check(with([](simt::Settings&) {}).available, "a GPU");
  check(with([](simt::Settings& s) { s.driver = 0; }).reason == "no NVIDIA driver", "no driver");
  check(with([](simt::Settings& s) { s.driver = 12040; }).reason.find("supports CUDA 12.4, this build needs 13.0") != std::string::npos, "an old driver");
  check(with([](simt::Settings& s) { s.devices = 0; }).reason == "no CUDA device", "no GPU");
  check(with([](simt::Settings& s) { s.major = 7; s.minor = 5; }).reason.find("(7.5)") != std::string::npos, "an old GPU");
  check(with([](simt::Settings& s) { s.major = 8; s.minor = 7; }).available, "8.7 runs code for 8.6");
  check(with([](simt::Settings& s) { s.major = 11; s.minor = 0; }).devices.empty(), "nothing runs on 11.0");
  Context* context = nullptr;
  check(cuda::context_create({0, machine.precision, 1}, &context).code == Code::unsupported && !context, "nor is a context made");
  simt::configure(normal);
  check(is(cuda::context_create({5, machine.precision, 1}, &context), Code::device_failed, "cudaErrorInvalidDevice", -1), "no such GPU");
}

}  // namespace
}  // namespace desap::test
#endif
