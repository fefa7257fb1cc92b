// What an analysis from parts is on a GPU alone: page-locked features, and how many rows there may be.
#include "../../cuda/context.h"
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

}  // namespace
}  // namespace desap::test
