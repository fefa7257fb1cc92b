// self_attention against float64.
#include "kernel_test.h"
#include "random_block.h"

namespace desap::test {
namespace {

void check_shape(const Machine& machine, int64_t rows, int64_t heads, int64_t size, const RandomRotary* rotary, float spread, const std::string& what) {
  const int64_t width = heads * size;
  const Floats q = Random(1).floats(rows * width, spread), k = Random(2).floats(rows * width, spread), v = Random(3).floats(rows * width);
  const Rotary tables = rotary ? rotary->tables() : Rotary{};
  const Floats both = machine.same<float>(what, [&](Context& context) {
    Rows y(rows, width, 5);
    Floats saliency(static_cast<size_t>(rows) + 1, 7.0f);
    check(self_attention(context, Rows(q, rows, width, 3), Rows(k, rows, width, 2), Rows(v, rows, width, 1), heads, tables, y, saliency.data()).good(), "status");
    check(saliency.back() == 7.0f, "nothing written past the end");
    saliency.pop_back();
    return concatenate({y.dense(), saliency});
  });
  const Array turned_q = rotate64({q, rows, width}, heads, tables), turned_k = rotate64({k, rows, width}, heads, tables);
  const Floats y(both.begin(), both.begin() + rows * width), saliency(both.begin() + rows * width, both.end());
  check_close(y, reference::attention(turned_q, turned_k, {v, rows, width}, heads).data, machine.tolerance(5e-6), what + " context");
  check_close(saliency, reference::saliency(turned_q, turned_k, heads, false), machine.tolerance(5e-6), what + " saliency");
}

DESAP_CASE(self_attention_shapes) {
  for_attention_shapes(machine, [&](int64_t rows, int64_t heads, int64_t size) {
    check_shape(machine, rows, heads, size, nullptr, 1, shape({rows, heads, size}));
    const RandomRotary rotary(rows, size, 3);
    check_shape(machine, rows, heads, size, &rotary, 1, shape({rows, heads, size}) + " rotated");
  });
}

DESAP_CASE(self_attention_rotated_by_any_magnitude) {
  for (float gain : {0.01f, 3.0f, 1000.0f}) {
    const RandomRotary rotary(41, 20, 3, gain);
    check_shape(machine, 41, 3, 20, &rotary, gain > 1 ? 1 / gain : 1, "tables of " + std::to_string(gain));
  }
}

// The saliency's bits are those of the kernel that computes it alone.
DESAP_CASE(self_attention_saliency_is_saliency) {
  const int64_t rows = 130, heads = 2, size = 40, width = heads * size;
  const Floats q = Random(1).floats(rows * width), k = Random(2).floats(rows * width), v = Random(3).floats(rows * width);
  Rows y(rows, width, 0);
  Floats both(static_cast<size_t>(rows)), alone(static_cast<size_t>(rows));
  check(self_attention(machine.one(), Rows(q, rows, width, 0), Rows(k, rows, width, 0), Rows(v, rows, width, 0), heads, {}, y, both.data()).good(), "both");
  check(saliency(machine.one(), Rows(q, rows, width, 0), Rows(k, rows, width, 0), heads, false, {}, alone.data()).good(), "alone");
  check(both == alone, "equal bits");
}

}  // namespace
}  // namespace desap::test
