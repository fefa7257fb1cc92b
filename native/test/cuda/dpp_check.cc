// dpp.cu where one block is not enough, and where rows end between two warps.
#include "../greedy.h"
#include "operands.h"

namespace desap::test {
namespace {

DESAP_CASE(dpp_of_several_blocks) {
  if (machine.tested_already()) return;
  for (int64_t rows : {8, 9, 63, 129}) {
    const int64_t cols = 37, count = rows / 3;
    Random random(static_cast<uint64_t>(rows));
    const Floats x = random.floats(rows * cols);
    Floats relevance;
    for (int64_t i = 0; i < rows; i++) relevance.push_back(0.1f + std::fabs(random.normal()));
    Ints picked(static_cast<size_t>(count), -1);
    check(dpp(machine.one(), {x.data(), rows, cols, cols}, relevance.data(), 0.7f, count, picked.data()).good(), "status");
    check(picked == reference::dpp({x, rows, cols}, relevance, 0.7f, count), shape({rows, cols, count}));
  }
}

}  // namespace
}  // namespace desap::test
