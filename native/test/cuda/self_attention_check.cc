// self_attention.cu beside the kernels that it runs: what attention.cu and saliency.cu give for operands that are turned already.
#include "../random_block.h"
#include "operands.h"

namespace desap::test {
namespace {

DESAP_CASE(self_attention_is_attention_of_turned_operands) {
  const int64_t rows = 70, heads = 3, size = 40, width = heads * size;
  const Floats q = Random(1).floats(rows * width), k = Random(2).floats(rows * width), v = Random(3).floats(rows * width);
  const RandomRotary rotary(rows, size, 4);
  const auto turned = [&](const Floats& x) {
    const Array exact = rotate64({x, rows, width}, heads, rotary.tables());
    return Floats(exact.data.begin(), exact.data.end());
  };
  const Floats turned_q = turned(q), turned_k = turned(k);
  Rows own(rows, width, 0), apart(rows, width, 0);
  Floats received(static_cast<size_t>(rows)), alone(static_cast<size_t>(rows));
  Context& context = machine.one();
  check(self_attention(context, Rows(q, rows, width, 1), Rows(k, rows, width, 2), Rows(v, rows, width, 3), heads, rotary.tables(), own, received.data()).good(), "both");
  check(attention(context, Rows(turned_q, rows, width, 0), Rows(turned_k, rows, width, 0), Rows(v, rows, width, 0), heads, apart).good(), "attention");
  check(saliency(context, Rows(turned_q, rows, width, 0), Rows(turned_k, rows, width, 0), heads, false, {}, alone.data()).good(), "saliency");
  const Floats expected = apart.dense();
  check_close(own.dense(), Doubles(expected.begin(), expected.end()), machine.tolerance(1e-5), "context");
  check_close(received, Doubles(alone.begin(), alone.end()), machine.tolerance(1e-5), "saliency");
}

}  // namespace
}  // namespace desap::test
