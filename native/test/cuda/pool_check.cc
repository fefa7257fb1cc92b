// pool.cu against float64: each unit's members, wherever they lie.
#include "heads.h"

namespace desap::test {
namespace {

DESAP_CUDA_CASE(pool) {
  for (const auto& [size, units] : {std::pair<int64_t, int64_t>{1, 1}, {40, 1}, {129, 129}, {1000, 300}}) {
    Random random(static_cast<uint64_t>(size + units));
    const Floats scores = random.floats(size);
    std::vector<Ints> members(static_cast<size_t>(units));
    for (int64_t i = 0; i < size; i++) members[static_cast<size_t>(i < units ? i : random.below(units))].push_back(static_cast<int32_t>(i));
    Ints begin = {0}, member;
    Doubles expected;
    for (const Ints& of_unit : members) {
      double sum = 0;
      for (int32_t i : of_unit) sum += scores[static_cast<size_t>(i)];
      expected.push_back(sum / static_cast<double>(of_unit.size()));
      member.insert(member.end(), of_unit.begin(), of_unit.end());
      begin.push_back(static_cast<int32_t>(member.size()));
    }
    const DeviceArray<float> device_scores(scores);
    const DeviceArray<int> device_begin(begin), device_member(member);
    const auto run = [&, units = units] {
      const DeviceArray<float> means(units);
      cuda::pool(queue, device_scores.get(), device_begin.get(), device_member.get(), units, means.get());
      return means.read();
    };
    check_close(run(), expected, 1e-6, shape({size, units}));
    check(repeats(run), shape({size, units}) + ": runs differ");
  }
}

}  // namespace
}  // namespace desap::test
