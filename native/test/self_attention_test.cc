// self_attention against float64.
#include "kernel_test.h"
#include "random_block.h"

namespace desap::test {
namespace {

struct Attended {
  Floats context, saliency;
};

// On every context; the saliency is that of the kernel which computes nothing else, to the bit.
Attended attend(const Machine& machine, const Floats& q, const Floats& k, const Floats& v, int64_t heads, int64_t rows, Rotary rotary, const std::string& what) {
  const int64_t width = static_cast<int64_t>(q.size()) / rows;
  const Floats both = machine.same<float>(what, [&](Context& context) {
    const Rows queries(q, rows, width, 3), keys(k, rows, width, 2), values(v, rows, width, 1);
    Rows y(rows, width, 1);
    Floats scores(static_cast<size_t>(rows) + 1, 7.0f), alone(static_cast<size_t>(rows) + 1, 7.0f);
    check(self_attention(context, queries, keys, values, heads, rotary, y, scores.data()).good(), "status");
    check(saliency(context, queries, keys, heads, false, rotary, alone.data()).good() && scores == alone, what + ": the saliency by itself");
    check(scores.back() == 7.0f, "nothing written past the end");
    return concatenate({y.dense(), scores});
  });
  return {{both.begin(), both.begin() + rows * width}, {both.begin() + rows * width, both.end() - 1}};
}

void check_attended(const Machine& machine, const Floats& q, const Floats& k, const Floats& v, int64_t heads, int64_t rows, Rotary rotary, double tolerance, const std::string& what) {
  const int64_t width = static_cast<int64_t>(q.size()) / rows;
  const Attended got = attend(machine, q, k, v, heads, rows, rotary, what);
  const Array turned_q = rotate64({q, rows, width}, heads, rotary), turned_k = rotate64({k, rows, width}, heads, rotary);
  check_close(got.context, reference::attention(turned_q, turned_k, {v, rows, width}, heads).data, machine.tolerance(tolerance), what);
  check_close(got.saliency, reference::saliency(turned_q, turned_k, heads, false), machine.tolerance(tolerance), what + ", saliency");
}

DESAP_CASE(self_attention_shapes) {
  for_attention_shapes(machine, [&](int64_t rows, int64_t heads, int64_t size) {
    const int64_t width = heads * size;
    Random random(static_cast<uint64_t>(rows * 100 + size));
    const Floats q = random.floats(rows * width), k = random.floats(rows * width), v = random.floats(rows * width);
    const RandomRotary rotary(rows, size, 3);
    check_attended(machine, q, k, v, heads, rows, {}, 5e-6, shape({rows, heads, size}));
    check_attended(machine, q, k, v, heads, rows, rotary.tables(), 5e-6, shape({rows, heads, size}) + ", rotated");
  });
}

// Heads of an odd size, and of fewer columns than a vector.
DESAP_CASE(self_attention_odd_sizes) {
  for (const auto& [rows, heads, size] : {std::array<int64_t, 3>{1, 1, 1}, {3, 2, 1}, {9, 1, 3}, {24, 3, 7}, {25, 2, 17}, {47, 1, 33}, {49, 2, 5}, {71, 1, 67}, {100, 1, 13}}) {
    Random random(static_cast<uint64_t>(rows + size));
    const int64_t count = rows * heads * size;
    const Floats q = random.floats(count), k = random.floats(count), v = random.floats(count);
    check_attended(machine, q, k, v, heads, rows, {}, 5e-6, shape({rows, heads, size}));
  }
}

// More keys than a block of scores has, in groups of several blocks of rows.
DESAP_CASE(self_attention_many_rows) {
  const int64_t rows = 1030, heads = 2, size = 18, width = heads * size;
  if (!machine.affords(static_cast<double>(rows * rows * width))) return;
  const Floats q = Random(1).floats(rows * width), k = Random(2).floats(rows * width), v = Random(3).floats(rows * width);
  const RandomRotary rotary(rows, size, 4);
  check_attended(machine, q, k, v, heads, rows, rotary.tables(), 5e-6, "1030 rows");
}

// Tables of any magnitude.
DESAP_CASE(self_attention_rotated_by_any_magnitude) {
  const int64_t rows = 41, heads = 3, size = 20, width = heads * size;
  for (float gain : {0.01f, 3.0f, 1000.0f}) {
    const float spread = gain > 1 ? 1 / gain : 1;
    const Floats q = Random(1).floats(rows * width, spread), k = Random(2).floats(rows * width, spread), v = Random(3).floats(rows * width, 1000);
    const RandomRotary rotary(rows, size, 3, gain);
    check_attended(machine, q, k, v, heads, rows, rotary.tables(), 5e-6, "tables of " + std::to_string(gain));
  }
}

// Scores up to 1e4, of integers that multiply exactly: see attention_large_scores.
DESAP_CASE(self_attention_large_scores) {
  const int64_t rows = 300, size = 64;
  Random random(11);
  Floats q, v = random.floats(rows * size);
  for (int64_t i = 0; i < rows * size; i++) q.push_back(static_cast<float>(random.below(65) - 32));
  for (int64_t d = 0; d < size; d++) q[static_cast<size_t>(290 * size + d)] = 35;  // the largest score arrives last
  check_attended(machine, q, q, v, 1, rows, {}, 1e-5, "scores up to 1e4");
}

// A row that is not a number reaches its own head only.
DESAP_CASE(self_attention_not_a_number) {
  const int64_t rows = 30, heads = 3, size = 16, width = heads * size;
  Floats q = Random(1).floats(rows * width);
  const Floats k = Random(2).floats(rows * width), v = Random(3).floats(rows * width);
  const Attended good = attend(machine, q, k, v, heads, rows, {}, "numbers");
  q[static_cast<size_t>(7 * width + size)] = NAN;
  Rows y(rows, width);
  Floats scores(static_cast<size_t>(rows));
  check(self_attention(machine.one(), Rows(q, rows, width), Rows(k, rows, width), Rows(v, rows, width), heads, {}, y, scores.data()).good(), "status");
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t h = 0; h < heads; h++) {
      const size_t place = static_cast<size_t>(i * width + h * size);
      check(i == 7 && h == 1 ? std::isnan(y.data[place]) : y.data[place] == good.context[place], "row " + std::to_string(i) + ", head " + std::to_string(h));
    }
  }
  for (float score : scores) check(std::isnan(score), "every key has a share of the row");
}

}  // namespace
}  // namespace desap::test
