// Half precision to single and back. Both directions are one instruction where the processor has them.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int64_t convert_block = 16384;  // elements per task

Status convert_half(Context& context, const uint16_t* x, int64_t size, float* y) {
  context.pool.parallel_for((size + convert_block - 1) / convert_block, [=](int64_t block, int) {
    const int64_t begin = block * convert_block, end = begin + convert_block < size ? begin + convert_block : size;
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) store(y + i, load_half(x + i));
    if (i == end) return;
    uint16_t rest[lanes] = {};
    for (int64_t j = i; j < end; j++) rest[j - i] = x[j];
    store_first(end - i, y + i, load_half(rest));
  });
  return {};
}

Status convert_to_half(Context& context, const float* x, int64_t size, uint16_t* y) {
  context.pool.parallel_for((size + convert_block - 1) / convert_block, [=](int64_t block, int) {
    const int64_t begin = block * convert_block, end = begin + convert_block < size ? begin + convert_block : size;
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) store_half(y + i, load(x + i));
    if (i == end) return;
    uint16_t rest[lanes];
    store_half(rest, load_first(end - i, x + i));
    for (int64_t j = i; j < end; j++) y[j] = rest[j - i];
  });
  return {};
}

}  // namespace DESAP_ISA
}  // namespace desap
