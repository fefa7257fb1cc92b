// attention against float64.
#include <iterator>

#include "kernel_test.h"

namespace desap::test {
namespace {

DESAP_CASE(attention_shapes) {
  for_attention_shapes(machine, [&](int64_t rows, int64_t heads, int64_t size) {
    const int64_t width = heads * size;
    Random random(static_cast<uint64_t>(rows * 100 + size));
    const Floats q = random.floats(rows * width), k = random.floats(rows * width), v = random.floats(rows * width);
    const std::string what = shape({rows, heads, size});
    const Floats y = machine.same<float>(what, [&](Context& context) {
      Rows out(rows, width, 1);
      const Rows queries(q, rows, width, 3), keys(k, rows, width, 2), values(v, rows, width, 1);
      check(attention(context, queries, keys, values, heads, out).good(), "status");
      return out.dense();
    });
    check_close(y, reference::attention({q, rows, width}, {k, rows, width}, {v, rows, width}, heads).data, machine.tolerance(5e-6), what);
  });
}

// Scores up to 1e4: float32 scores are then off by about 1e-3, so the operands are integers that multiply exactly.
DESAP_CASE(attention_large_scores) {
  const int64_t rows = 300, size = 64;
  Random random(11);
  Floats q, v = random.floats(rows * size);
  for (int64_t i = 0; i < rows * size; i++) q.push_back(static_cast<float>(random.below(65) - 32));
  for (int64_t d = 0; d < size; d++) q[static_cast<size_t>(290 * size + d)] = 35;  // the largest score arrives last
  const Floats y = machine.same<float>("large", [&](Context& context) {
    Rows out(rows, size);
    const Rows queries(q, rows, size), values(v, rows, size);
    attention(context, queries, queries, values, 1, out);
    return out.dense();
  });
  const Array operand(q, rows, size);
  check_close(y, reference::attention(operand, operand, {v, rows, size}, 1).data, machine.tolerance(1e-5), "scores up to 1e4");
}

// A matrix with itself: the block edges of gaussian.h, heads whose last vector is not full.
DESAP_CASE(attention_of_itself) {
  for (int64_t rows : {1, 2, 15, 47, 48, 65, 95, 96, 97, 143, 144, 145, 241, 257, 577}) {
    for (int64_t size : {16, 20, 64, 80}) {
      const int64_t heads = rows > 200 ? 1 : 2, width = heads * size;
      if (!machine.affords(static_cast<double>(rows * rows * width))) continue;
      Random random(static_cast<uint64_t>(rows * 100 + size));
      const Floats q = random.floats(rows * width), v = random.floats(rows * width);
      const Floats y = machine.same<float>(shape({rows, heads, size}), [&](Context& context) {
        Rows out(rows, width, 1);
        const Rows queries(q, rows, width, 3), values(v, rows, width, 2);
        check(attention(context, queries, queries, values, heads, out).good(), "status");
        return out.dense();
      });
      const Array operand(q, rows, width);
      check_close(y, reference::attention(operand, operand, {v, rows, width}, heads).data, machine.tolerance(5e-6),
                  shape({rows, heads, size}));
    }
  }
}

// Heads below and beyond the range of the Gaussian form (s_ii up to 116): rows of any length beside the longest, which small
// rows may weigh most. An exponent of size s carries a rounding error of s 2^-24.
DESAP_CASE(attention_range) {
  if (machine.precision != Precision::fp32) return;  // operands of 16 bits resolve no such exponents
  const int64_t rows = 130, size = 32;
  const double largest[] = {0, 1e-30, 60, 115, 118, 250, 700, 3000};  // of q_i . q_i / sqrt(dh), per head
  const int64_t heads = static_cast<int64_t>(std::size(largest)), width = heads * size;
  Random random(21);
  Floats q(static_cast<size_t>(rows * width)), v = random.floats(rows * width);
  for (int64_t h = 0; h < heads; h++) {
    Floats drawn = random.floats(rows * size);
    double most = 0;
    for (int64_t i = 0; i < rows; i++) {
      const float length = i % 5 == 0 ? 1.0f : std::fabs(random.uniform());
      double square = 0;
      for (int64_t d = 0; d < size; d++) {
        float& x = drawn[static_cast<size_t>(i * size + d)];
        x *= length;
        square += static_cast<double>(x) * x;
      }
      most = std::fmax(most, square / std::sqrt(static_cast<double>(size)));
    }
    const float scale = static_cast<float>(std::sqrt(largest[h] / most));
    for (int64_t i = 0; i < rows; i++) {
      for (int64_t d = 0; d < size; d++) q[static_cast<size_t>(i * width + h * size + d)] = drawn[static_cast<size_t>(i * size + d)] * scale;
    }
  }
  const auto attend = [&](const Floats& operand) {
    return machine.same<float>("range", [&](Context& context) {
      Rows out(rows, width);
      const Rows queries(operand, rows, width), values(v, rows, width);
      check(attention(context, queries, queries, values, heads, out).good(), "status");
      return out.data;
    });
  };
  const Floats y = attend(q);
  const Array operand(q, rows, width);
  const Doubles expected = reference::attention(operand, operand, {v, rows, width}, heads).data;
  const auto of_head = [&](const auto& x, int64_t h) {
    std::decay_t<decltype(x)> part;
    for (int64_t i = 0; i < rows; i++) part.insert(part.end(), x.begin() + i * width + h * size, x.begin() + i * width + (h + 1) * size);
    return part;
  };
  for (int64_t h = 0; h < heads; h++) {
    check_close(of_head(y, h), of_head(expected, h), machine.tolerance(2e-6 + 2 * largest[h] * 0x1p-24), "s_ii up to " + std::to_string(largest[h]));
  }

  q[static_cast<size_t>(7 * width + 2 * size)] = NAN;  // reaches its own head only
  const Floats again = attend(q);
  for (int64_t h = 0; h < heads; h++) check((of_head(again, h) == of_head(y, h)) == (h != 2), "a number that is none, head " + std::to_string(h));
}

}  // namespace
}  // namespace desap::test
