// What an analysis from parts is on a GPU alone: page-locked features, and how many rows there may be.
#include "../../cuda/context.h"
#include "../random_head.h"
#include "../random_parts.h"

namespace desap::test {
namespace {

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

DESAP_CASE(analysis_from_too_many_parts) {
  const Parts many(65537, 1, 1);
  std::shared_ptr<Analysis> analysis;
  check(is(Analysis::from(machine.one(), many.parts(true), &analysis), Code::unsupported, "rows", -1), "65537 patches");
}

// A row is in the registers of one block.
DESAP_CASE(rows_of_most_columns) {
  const int64_t widest = 16384;
  for (const int64_t size : {widest, widest + 1}) {
    const bool fits = size == widest;
    const auto told = [&](const Status& status, const char* what) {
      check(fits ? status.good() : is(status, Code::unsupported, what, -1), std::string(what) + ", " + std::to_string(size));
    };
    const Parts wide(2, size, 3);
    std::shared_ptr<Analysis> analysis;
    for (const bool with_global : {true, false})
      told(Analysis::from(machine.one(), wide.parts(with_global), &analysis), "patchEmbeddings of more than 16384 columns");
    Floats y(static_cast<size_t>(2 * size));
    const ConstMatrix x{wide.embeddings.data(), 2, size, size};
    const Matrix to{y.data(), 2, size, size};
    told(unit_rows(machine.one(), x, to), "x of more than 16384 columns");
    told(layer_norm(machine.one(), x, nullptr, nullptr, 1e-5f, to), "x of more than 16384 columns");
    const HeadShape shape{3, 8, 1, size, true, 1, 1};
    const RandomWeights weights(shape);
    std::shared_ptr<Head> head;
    told(Head::create(machine.one(), weights.config, weights.weights(), &head), "projectionDim beyond 16384");
  }
}

}  // namespace
}  // namespace desap::test
