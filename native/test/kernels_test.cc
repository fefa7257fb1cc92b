// Every kernel against float64, on shapes that no tile, vector or panel divides.
#include <cmath>
#include <iterator>
#include <limits>

#include "harness.h"
#include "reference.h"

namespace desap::test {
namespace {

using reference::Array;

const float infinity = std::numeric_limits<float>::infinity();
const int64_t tokens_list[] = {1, 2, 17, 33, 65, 97, 145, 257, 577};

Floats ones_with(int64_t size, int64_t at, float value) {
  Floats x(static_cast<size_t>(size), 1.0f);
  for (size_t i = 0; i < x.size(); i += 3) x[i] = -0.5f;
  x[static_cast<size_t>(at)] = value;
  return x;
}

// ---------------------------------------------------------------------------------------------------------- convert

double half_value(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

DESAP_CASE(convert_half_all_values) {
  std::vector<uint16_t> x(65536);
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<uint16_t>(i);
  const Floats y = machine.same<float>("all", [&](Context& context) {
    Floats out(x.size());
    convert_half(context, x.data(), 65536, out.data());
    return out;
  });
  bool exact = true, round_trip = true;
  for (size_t i = 0; i < x.size(); i++) {
    const double expected = half_value(x[i]);
    exact = exact && (std::isnan(expected) ? std::isnan(y[i]) : y[i] == expected && std::signbit(y[i]) == std::signbit(expected));
  }
  std::vector<uint16_t> back(x.size());
  convert_to_half(machine.one(), y.data(), 65536, back.data());
  for (size_t i = 0; i < x.size(); i++) round_trip = round_trip && (std::isnan(y[i]) ? std::isnan(half_value(back[i])) : back[i] == x[i]);
  check(exact, "half to float is exact");
  check(round_trip, "and back");
}

DESAP_CASE(convert_to_half_rounds_to_even) {
  Floats x;
  for (uint32_t h = 0; h < 0x7c00; h++) {  // each value, the points around the middle to the next, and the middle
    const double low = half_value(static_cast<uint16_t>(h)), high = h == 0x7bff ? 65536 : half_value(static_cast<uint16_t>(h + 1));
    const float middle = static_cast<float>((low + high) / 2);
    for (float v : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, infinity)}) x.insert(x.end(), {v, -v});
  }
  x.insert(x.end(), {1e-30f, -1e-30f, 1e-45f, 70000.0f, 1e30f, -infinity, 0.0f, -0.0f, infinity});
  std::vector<uint16_t> y(x.size());
  convert_to_half(machine.one(), x.data(), static_cast<int64_t>(x.size()), y.data());
  bool nearest = true;
  for (size_t i = 0; i < x.size(); i++) {
    const double value = std::fabs(x[i]);
    uint32_t low = y[i] & 0x7fffu;
    const auto reach = [&](uint32_t h) { return h == 0x7c00 ? 65536.0 : half_value(static_cast<uint16_t>(h)); };
    const double distance = low == 0x7c00 && value > 65536 ? 0 : std::fabs(reach(low) - value);
    bool ok = std::signbit(x[i]) == (y[i] >> 15 == 1) && low <= 0x7c00;
    for (uint32_t other : {low - 1, low + 1}) {
      if (other > 0x7c00) continue;
      const double d = std::fabs(reach(other) - value);
      ok = ok && (d > distance || (d == distance && low % 2 == 0) || distance == 0);
    }
    nearest = nearest && ok;
  }
  check(nearest, "nearest even");
}

DESAP_CASE(convert_ragged_sizes) {
  for (int64_t size : {0, 1, 3, 15, 16, 17, 31, 33}) {
    const Floats x = Random(3).floats(size);
    std::vector<uint16_t> h(static_cast<size_t>(size) + 1, 0xabcd);
    Floats y(static_cast<size_t>(size) + 1, 7.0f);
    convert_to_half(machine.one(), x.data(), size, h.data());
    convert_half(machine.one(), h.data(), size, y.data());
    bool ok = h.back() == 0xabcd && y.back() == 7.0f;
    for (size_t i = 0; i < x.size(); i++) ok = ok && std::fabs(y[i] - x[i]) <= std::fabs(x[i]) * 0x1p-11f + 0x1p-25f;
    check(ok, "size " + std::to_string(size));
  }
}

// ----------------------------------------------------------------------------------------- layer_norm and unit_rows

DESAP_CASE(layer_norm_shapes) {
  if (machine.tested_already()) return;
  for (int64_t rows : {1, 2, 17, 33, 97}) {
    for (int64_t cols : {1, 2, 16, 17, 31, 64, 80, 257, 1024}) {
      Random random(static_cast<uint64_t>(rows * 1000 + cols));
      const Floats x = random.floats(rows * cols), weight = random.floats(cols), bias = random.floats(cols);
      const Floats y = machine.same<float>(shape({rows, cols}), [&](Context& context) {
        Rows out(rows, cols, 3);
        check(layer_norm(context, Rows(x, rows, cols, 5), weight.data(), bias.data(), 1e-5f, out).good(), "status");
        return out.dense();
      });
      const Array expected = reference::layer_norm({x, rows, cols}, {weight, 1, cols}, {bias, 1, cols}, 1e-5f);
      check_close(y, expected.data, 2e-6, shape({rows, cols}));
    }
  }
}

DESAP_CASE(layer_norm_large_mean_and_in_place) {
  Floats x = Random(5).floats(7 * 1024);
  for (float& v : x) v += 100;
  const Floats weight(1024, 1.0f), bias(1024, 0.0f);
  Rows y(x, 7, 1024, 1);
  check(layer_norm(machine.one(), y, weight.data(), bias.data(), 1e-5f, y).good(), "status");
  const Array expected = reference::layer_norm({x, 7, 1024}, {weight, 1, 1024}, {bias, 1, 1024}, 1e-5f);
  check_close(y.dense(), expected.data, 1e-4, "mean 100 times the spread");
}

DESAP_CASE(not_finite_rows_are_named) {
  if (machine.tested_already()) return;
  for (float bad : {NAN, infinity, -infinity, 3e38f}) {
    for (int64_t cols : {20, 64, 65}) {
      for (int64_t at : {int64_t{0}, int64_t{7}, cols - 1}) {
        Floats x = Random(7).floats(40 * cols);
        const Floats row = ones_with(cols, at, bad), weight(static_cast<size_t>(cols), 1.0f);
        for (int64_t i : {23, 37}) std::copy(row.begin(), row.end(), x.begin() + i * cols);
        Rows y(40, cols);
        const Rows in(x, 40, cols);
        const Ints kept = {1, 5};
        Ints assignment(40, 77), group(2, 77);
        Rows tokens(2, cols);
        for (int run = 0; run < 2; run++) {
          const std::string what = std::to_string(bad) + " at " + std::to_string(at);
          check(is(layer_norm(machine.one(), in, weight.data(), weight.data(), 1e-5f, y), Code::not_finite, "x", 23), "layer_norm " + what);
          check(is(unit_rows(machine.one(), in, y), Code::not_finite, "x", 23), "unit_rows " + what);
          check(is(merge(machine.one(), in, kept.data(), 2, tokens, assignment.data(), group.data()), Code::not_finite, "features", 23), "merge " + what);
          check(assignment[0] == 77 && group[0] == 77 && std::isnan(tokens.data[0]), "merge writes nothing on failure");
        }
      }
    }
  }
}

DESAP_CASE(unit_rows_shapes) {
  for (int64_t cols : {1, 2, 16, 17, 31, 64, 80, 257, 768}) {
    Random random(static_cast<uint64_t>(cols));
    Floats x = random.floats(33 * cols);
    for (int64_t j = 0; j < cols; j++) {
      x[static_cast<size_t>(5 * cols + j)] = 0;          // stays zero
      x[static_cast<size_t>(6 * cols + j)] *= 1e-14f;    // shorter than 1e-12: divided by 1e-12
      x[static_cast<size_t>(7 * cols + j)] *= 1e15f;
    }
    const Floats y = machine.same<float>(shape({cols}), [&](Context& context) {
      Rows out(x, 33, cols, 2);
      check(unit_rows(context, out, out).good(), "status");
      return out.dense();
    });
    check_close(y, reference::unit_rows({x, 33, cols}).data, 5e-7, shape({cols}));
    bool zero = true;
    for (int64_t j = 0; j < cols; j++) zero = zero && y[static_cast<size_t>(5 * cols + j)] == 0;
    check(zero, "a zero row stays zero");
  }
}

// ----------------------------------------------------------------------------------------------------------- linear

DESAP_CASE(linear_shapes) {
  const int64_t shapes[][3] = {{1, 1, 1},   {1, 16, 16},  {2, 20, 33},   {17, 64, 80},   {33, 80, 17},  {65, 32, 65},  {97, 128, 64},
                               {5, 7, 130}, {6, 64, 128}, {12, 65, 256}, {145, 256, 48}, {96, 1281, 20}, {7, 3000, 70}, {257, 100, 96},
                               {400, 40, 520}};  // the last in blocks of other sizes for other numbers of threads
  for (const auto& sizes : shapes) {
    const int64_t rows = sizes[0], in = sizes[1], out = sizes[2];
    if (rows == 400 && !machine.affords(static_cast<double>(rows * in * out))) continue;
    Random random(static_cast<uint64_t>(rows * 7 + in * 3 + out));
    const Floats x = random.floats(rows * in), w = random.floats(out * in), b = random.floats(out);
    for (bool with_bias : {true, false}) {
      const std::string what = shape({rows, in, out}) + (with_bias ? " bias" : "");
      const Floats y = machine.same<float>(what, [&](Context& context) {
        Linear* packed = nullptr;
        check(linear_pack(context, Rows(w, out, in, 1), with_bias ? b.data() : nullptr, &packed).good(), "pack");
        Rows result(rows, out, 3);
        check(linear(context, Rows(x, rows, in, 2), *packed, result).good(), "status");
        linear_free(packed);
        return result.dense();
      });
      const Array bias(b, 1, out);
      check_close(y, reference::linear({x, rows, in}, {w, out, in}, with_bias ? &bias : nullptr).data, machine.tolerance(3e-6), what,
                  std::sqrt(static_cast<double>(in)));
    }
  }
}

// One number per row, so that each sum is the number itself; wherever in a row it stands.
DESAP_CASE(linear_rounds_to_the_nearest_bfloat16_of_two_the_even_one) {
  if (machine.precision != Precision::bf16) return;
  const uint32_t bits[][2] = {{0x3f808000, 0x3f800000}, {0x3f818000, 0x3f820000}, {0x3f808001, 0x3f810000}, {0xbf807fff, 0xbf800000},
                              {0x7f7f7fff, 0x7f7f0000}, {0x7f7f8000, 0x7f800000}, {0x00800001, 0x00800000}, {0x80000000, 0x00000000}};
  const auto number = [](uint32_t word) {
    float x;
    std::memcpy(&x, &word, sizeof x);
    return x;
  };
  const int64_t in = 75;
  const Floats ones(static_cast<size_t>(in), 1.0f);
  Linear* packed = nullptr;
  check(linear_pack(machine.one(), {ones.data(), 1, in, in}, nullptr, &packed).good(), "pack");
  for (const auto& [given, wanted] : bits) {
    Floats x(static_cast<size_t>(in * in), 0.0f);
    for (int64_t i = 0; i < in; i++) x[static_cast<size_t>(i * in + i)] = number(given);
    Rows y(in, 1);
    check(linear(machine.one(), {x.data(), in, in, in}, *packed, y).good(), "status");
    bool equal = true;
    for (float value : y.dense()) equal = equal && value == number(wanted);
    check(equal, std::to_string(number(given)));
  }
  linear_free(packed);
}

DESAP_CASE(linear_rows_do_not_depend_on_each_other) {
  const int64_t in = 70, out = 75;
  Random random(9);
  const Floats x = random.floats(100 * in), w = random.floats(out * in);
  Linear* packed = nullptr;
  linear_pack(machine.one(), Rows(w, out, in), nullptr, &packed);
  Rows all(100, out);
  linear(machine.one(), Rows(x, 100, in), *packed, all);
  bool equal = true;
  for (int64_t i = 0; i < 100; i++) {
    Rows one(1, out);
    linear(machine.one(), {x.data() + i * in, 1, in, in}, *packed, one);
    equal = equal && std::memcmp(one.data.data(), all.data.data() + i * out, out * sizeof(float)) == 0;
  }
  check(equal, "a row alone gives the same bits as among others");
  linear_free(packed);
}

// ------------------------------------------------------------------------------------------- attention and saliency

DESAP_CASE(attention_shapes) {
  for (int64_t tokens : tokens_list) {
    for (int64_t size : {16, 20, 32, 64, 80}) {
      if (tokens == 577 && size != 64) continue;
      const int64_t heads = tokens > 200 ? 1 : 3, width = heads * size;
      if (!machine.affords(static_cast<double>(tokens * tokens * width))) continue;
      Random random(static_cast<uint64_t>(tokens * 100 + size));
      const Floats q = random.floats(tokens * width), k = random.floats(tokens * width), v = random.floats(tokens * width);
      const Floats y = machine.same<float>(shape({tokens, heads, size}), [&](Context& context) {
        Rows out(tokens, width, 1);
        const Rows queries(q, tokens, width, 3), keys(k, tokens, width, 2), values(v, tokens, width, 1);
        check(attention(context, queries, keys, values, heads, out).good(), "status");
        return out.dense();
      });
      check_close(y, reference::attention({q, tokens, width}, {k, tokens, width}, {v, tokens, width}, heads).data, machine.tolerance(5e-6),
                  shape({tokens, heads, size}));
      for (bool class_token : {true, false}) {
        if (class_token && tokens == 1) continue;
        const Floats s = machine.same<float>(shape({tokens, heads, size}) + " saliency", [&](Context& context) {
          Floats out(static_cast<size_t>(class_token ? tokens - 1 : tokens) + 1, 7.0f);
          check(saliency(context, Rows(q, tokens, width, 3), Rows(k, tokens, width, 2), heads, class_token, out.data()).good(), "status");
          check(out.back() == 7.0f, "nothing written past the end");
          out.pop_back();
          return out;
        });
        check_close(s, reference::saliency({q, tokens, width}, {k, tokens, width}, heads, class_token), machine.tolerance(5e-6),
                    shape({tokens, heads, size}) + (class_token ? " saliency of the class token" : " saliency"));
      }
    }
  }
}

// Scores up to 1e4: float32 scores are then off by about 1e-3, so the operands are integers that multiply exactly.
DESAP_CASE(attention_large_scores) {
  const int64_t tokens = 300, size = 64;
  Random random(11);
  Floats q, v = random.floats(tokens * size);
  for (int64_t i = 0; i < tokens * size; i++) q.push_back(static_cast<float>(random.below(65) - 32));
  for (int64_t d = 0; d < size; d++) q[static_cast<size_t>(290 * size + d)] = 35;  // the largest score arrives last
  const Floats y = machine.same<float>("large", [&](Context& context) {
    Rows out(tokens, size);
    const Rows queries(q, tokens, size), values(v, tokens, size);
    attention(context, queries, queries, values, 1, out);
    return out.dense();
  });
  const Array operand(q, tokens, size);
  check_close(y, reference::attention(operand, operand, {v, tokens, size}, 1).data, machine.tolerance(1e-5), "scores up to 1e4");
  Floats s(static_cast<size_t>(tokens));
  saliency(machine.one(), Rows(q, tokens, size), Rows(q, tokens, size), 1, false, s.data());
  check_close(s, reference::saliency(operand, operand, 1, false), machine.tolerance(1e-5), "column mean of them");
}

// A matrix with itself: the block edges of gaussian.h, heads whose last vector is not full.
DESAP_CASE(attention_of_itself) {
  for (int64_t tokens : {1, 2, 15, 47, 48, 65, 95, 96, 97, 143, 144, 145, 241, 257, 577}) {
    for (int64_t size : {16, 20, 64, 80}) {
      const int64_t heads = tokens > 200 ? 1 : 2, width = heads * size;
      if (!machine.affords(static_cast<double>(tokens * tokens * width))) continue;
      Random random(static_cast<uint64_t>(tokens * 100 + size));
      const Floats q = random.floats(tokens * width), v = random.floats(tokens * width);
      const Floats y = machine.same<float>(shape({tokens, heads, size}), [&](Context& context) {
        Rows out(tokens, width, 1);
        const Rows queries(q, tokens, width, 3), values(v, tokens, width, 2);
        check(attention(context, queries, queries, values, heads, out).good(), "status");
        return out.dense();
      });
      const Array operand(q, tokens, width);
      check_close(y, reference::attention(operand, operand, {v, tokens, width}, heads).data, machine.tolerance(5e-6),
                  shape({tokens, heads, size}));
    }
  }
}

// Heads below and beyond the range of the Gaussian form (s_ii up to 116): rows of any length beside the longest, which small
// rows may weigh most. An exponent of size s carries a rounding error of s 2^-24.
DESAP_CASE(attention_range) {
  if (machine.precision != Precision::fp32) return;  // operands of 16 bits resolve no such exponents
  const int64_t tokens = 130, size = 32;
  const double largest[] = {0, 1e-30, 60, 115, 118, 250, 700, 3000};  // of q_i . q_i / sqrt(dh), per head
  const int64_t heads = static_cast<int64_t>(std::size(largest)), width = heads * size;
  Random random(21);
  Floats q(static_cast<size_t>(tokens * width)), v = random.floats(tokens * width);
  for (int64_t h = 0; h < heads; h++) {
    Floats rows = random.floats(tokens * size);
    double most = 0;
    for (int64_t i = 0; i < tokens; i++) {
      const float length = i % 5 == 0 ? 1.0f : std::fabs(random.uniform());
      double square = 0;
      for (int64_t d = 0; d < size; d++) {
        float& x = rows[static_cast<size_t>(i * size + d)];
        x *= length;
        square += static_cast<double>(x) * x;
      }
      most = std::fmax(most, square / std::sqrt(static_cast<double>(size)));
    }
    const float scale = static_cast<float>(std::sqrt(largest[h] / most));
    for (int64_t i = 0; i < tokens; i++) {
      for (int64_t d = 0; d < size; d++) q[static_cast<size_t>(i * width + h * size + d)] = rows[static_cast<size_t>(i * size + d)] * scale;
    }
  }
  const auto attend = [&](const Floats& operand) {
    return machine.same<float>("range", [&](Context& context) {
      Rows out(tokens, width);
      const Rows queries(operand, tokens, width), values(v, tokens, width);
      check(attention(context, queries, queries, values, heads, out).good(), "status");
      return out.data;
    });
  };
  const Floats y = attend(q);
  const Array operand(q, tokens, width);
  const Doubles expected = reference::attention(operand, operand, {v, tokens, width}, heads).data;
  const auto of_head = [&](const auto& x, int64_t h) {
    std::decay_t<decltype(x)> part;
    for (int64_t i = 0; i < tokens; i++) part.insert(part.end(), x.begin() + i * width + h * size, x.begin() + i * width + (h + 1) * size);
    return part;
  };
  for (int64_t h = 0; h < heads; h++) {
    check_close(of_head(y, h), of_head(expected, h), machine.tolerance(2e-6 + 2 * largest[h] * 0x1p-24), "s_ii up to " + std::to_string(largest[h]));
  }

  q[static_cast<size_t>(7 * width + 2 * size)] = NAN;  // reaches its own head only
  const Floats again = attend(q);
  for (int64_t h = 0; h < heads; h++) check((of_head(again, h) == of_head(y, h)) == (h != 2), "a number that is none, head " + std::to_string(h));
}

// One head of width 1, key 0 at 0: the weight of key 1 is e^x / (1 + e^x), which shows the exponential alone. Its argument
// x log2 e is rounded (constant and product): 1.25 |x| 2^-24 of relative error, on top of the function's own.
DESAP_CASE(exponential_through_saliency) {
  if (machine.precision != Precision::fp32) return;  // operands of 16 bits hold no such x
  double error = 0;
  for (float x = -87.0f; x <= 0; x += machine.small() ? 0.91f : 0.0113f) {
    const Floats q = {1, 0}, k = {0, x};
    float p = -1;
    saliency(machine.one(), Rows(q, 2, 1), Rows(k, 2, 1), 1, true, &p);
    const double expected = std::exp(static_cast<double>(x)) / (1 + std::exp(static_cast<double>(x)));
    error = std::fmax(error, std::fabs(p - expected) / expected / machine.tolerance(0x1p-22 + std::fabs(x) * 0x1.4p-24));
  }
  check(error < 1, "error " + std::to_string(error) + " of tolerance");
  for (float x : {-87.5f, -100.0f, -104.0f, -1e4f, -3e38f}) {
    const Floats q = {1, 0}, k = {0, x};
    float p = -1;
    saliency(machine.one(), Rows(q, 2, 1), Rows(k, 2, 1), 1, true, &p);
    check(p >= 0 && p < 0x1p-126f, "underflows");
  }
}

// ------------------------------------------------------------------------------------------------------------ align

DESAP_CASE(align_shapes) {
  if (machine.tested_already()) return;
  const int64_t shapes[][3] = {{1, 1, 16}, {2, 1, 20}, {17, 2, 33}, {33, 5, 64}, {64, 16, 80}, {97, 17, 48}, {145, 77, 65}, {576, 30, 96}, {49, 64, 32}, {50, 65, 32}};
  for (const auto& sizes : shapes) {
    const int64_t patches = sizes[0], text_tokens = sizes[1], size = sizes[2];
    Random random(static_cast<uint64_t>(patches * 31 + text_tokens));
    const auto unit = [&](int64_t rows) {
      const Array a = reference::unit_rows(Array(random.floats(rows * size), rows, size));
      return Floats(a.data.begin(), a.data.end());
    };
    const Floats visual = unit(patches), text = unit(text_tokens), query = unit(1), global = unit(1);
    for (Alignment alignment : {Alignment::fcma, Alignment::fcma_clamped, Alignment::mean}) {
      for (float lambda : {0.1f, 3.0f, 1000.0f, -2.0f}) {
        const reference::Aligned expected = reference::align({visual, patches, size}, {text, text_tokens, size}, {query, 1, size}, {global, 1, size}, alignment, lambda);
        const std::string what = shape({patches, text_tokens, size}) + " alignment " + std::to_string(static_cast<int>(alignment)) + " lambda " + std::to_string(lambda);
        const double tolerance = lambda > 100 ? 5e-4 : 5e-6;  // the exponent's own rounding, lambda 2^-24
        const size_t count = static_cast<size_t>(patches * text_tokens), rows = static_cast<size_t>(patches);
        const bool weights = alignment != Alignment::mean;
        const Floats y = machine.same<float>(what, [&](Context& context) {
          Floats task(rows), m(count), mv(count), mt(count), alone(rows);
          AlignmentMatrices matrices{m.data(), weights ? mv.data() : nullptr, weights ? mt.data() : nullptr};
          const Rows a(visual, patches, size, 3), b(text, text_tokens, size, 1);
          check(align(context, a, b, query.data(), global.data(), alignment, lambda, task.data(), matrices).good(), "status");
          check(align(context, a, b, query.data(), global.data(), alignment, lambda, alone.data(), {}).good(), "status");
          check(task == alone, "the matrices do not change the scores");
          return concatenate({task, m, mv, mt});
        });
        const auto part = [&](size_t begin, size_t size_) { return Floats(y.begin() + static_cast<int64_t>(begin), y.begin() + static_cast<int64_t>(begin + size_)); };
        check_close(part(0, rows), expected.task, tolerance * expected.cancellation, what + " task");
        check_close(part(rows, count), expected.similarity.data, 2e-6, what + " similarity");
        if (!weights) continue;
        check_close(part(rows + count, count), expected.visual.data, tolerance, what + " M_V");
        check_close(part(rows + 2 * count, count), expected.text.data, tolerance, what + " M_T");
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------------------ top_k

DESAP_CASE(top_k_selects) {
  if (machine.tested_already()) return;
  for (int64_t size : {1, 2, 17, 144, 576}) {
    for (int64_t k : {int64_t{0}, int64_t{1}, size / 3, size / 2, size}) {
      for (bool ties : {false, true}) {
        Random random(static_cast<uint64_t>(size + k));
        Floats scores;
        for (int64_t i = 0; i < size; i++) scores.push_back(ties ? static_cast<float>(random.below(5) - 2) * 0.5f : random.normal());
        for (float& s : scores) s = s == 0 && random.below(2) ? -0.0f : s;
        if (size > 100) scores[50] = infinity, scores[60] = -infinity, scores[70] = infinity;
        std::vector<uint8_t> excluded(static_cast<size_t>(size));
        Ints indices(static_cast<size_t>(k));
        check(top_k(machine.one(), scores.data(), nullptr, size, k, indices.data()).good(), "status");
        check(indices == reference::top_k(scores, nullptr, k), shape({size, k}) + (ties ? " with ties" : ""));
        for (int32_t i : indices) excluded[static_cast<size_t>(i)] = 1;
        const int64_t rest = std::min(k, size - k);
        indices.assign(static_cast<size_t>(rest), -1);
        check(top_k(machine.one(), scores.data(), excluded.data(), size, rest, indices.data()).good(), "status");
        check(indices == reference::top_k(scores, excluded.data(), rest), shape({size, rest}) + " of the rest");
      }
    }
  }
}

DESAP_CASE(top_k_not_a_number) {
  Floats scores = {1, 2, NAN, 3};
  const uint8_t excluded[] = {0, 0, 1, 0};
  int32_t indices[2] = {-1, -1};
  check(is(top_k(machine.one(), scores.data(), nullptr, 4, 1, indices), Code::not_finite, "scores", 2), "NaN that takes part");
  check(top_k(machine.one(), scores.data(), excluded, 4, 2, indices).good() && indices[0] == 1 && indices[1] == 3, "excluded NaN");
}

// ----------------------------------------------------------------------------------------------------------- select

DESAP_CASE(select_in_two_stages) {
  if (machine.tested_already()) return;
  for (int64_t size : {1, 2, 17, 144, 576}) {
    for (int64_t keep : {int64_t{0}, int64_t{1}, size / 3, size}) {
      for (int64_t task_keep : {int64_t{0}, keep / 2, keep}) {
        Random random(static_cast<uint64_t>(size + keep * 7 + task_keep));
        Floats task, saliency;
        for (Floats* map : {&task, &saliency}) {
          for (int64_t i = 0; i < size; i++) map->push_back(static_cast<float>(random.below(7)) * 0.5f - 1);
        }
        std::vector<uint8_t> taken(static_cast<size_t>(size)), source(static_cast<size_t>(keep), 7), expected_source;
        Ints expected = reference::top_k(task, nullptr, task_keep), indices(static_cast<size_t>(keep), -1);
        for (int32_t i : expected) taken[static_cast<size_t>(i)] = 1;
        for (int32_t i : reference::top_k(saliency, taken.data(), keep - task_keep)) expected.push_back(i);
        std::sort(expected.begin(), expected.end());
        for (int32_t i : expected) expected_source.push_back(taken[static_cast<size_t>(i)] ? 0 : 1);
        const float* const by_task = task_keep > 0 ? task.data() : nullptr;
        const float* const by_saliency = task_keep < keep ? saliency.data() : nullptr;
        for (bool both : {true, false}) {  // a map from which nothing is taken may be missing
          if (!both && !by_task && !by_saliency) continue;
          check(select(machine.one(), both ? task.data() : by_task, both ? saliency.data() : by_saliency, size, keep, task_keep, indices.data(), source.data()).good(), "status");
          check(indices == expected && source == expected_source, shape({size, keep, task_keep}));
        }
      }
    }
  }
}

DESAP_CASE(select_not_a_number) {
  const Floats good = {1, 2, 3, 4}, bad = {1, NAN, 3, 4}, taken = {1, 2, 3, NAN};
  int32_t indices[2];
  uint8_t source[2];
  check(is(select(machine.one(), bad.data(), good.data(), 4, 2, 1, indices, source), Code::not_finite, "task", 1), "task");
  check(is(select(machine.one(), good.data(), bad.data(), 4, 2, 1, indices, source), Code::not_finite, "saliency", 1), "saliency");
  check(select(machine.one(), good.data(), taken.data(), 4, 2, 1, indices, source).good() && indices[0] == 2 && indices[1] == 3, "of an entry that is taken");
}

// ------------------------------------------------------------------------------------------------------------ merge

void check_merge(const Machine& machine, const Floats& x, int64_t rows, int64_t cols, const Ints& kept, const std::string& what) {
  const int64_t k = static_cast<int64_t>(kept.size());
  Ints assignment(static_cast<size_t>(rows)), group(static_cast<size_t>(k));
  const Floats tokens = machine.same<float>(what, [&](Context& context) {
    Rows out(k, cols, 2);
    Ints a(static_cast<size_t>(rows)), g(static_cast<size_t>(k));
    check(merge(context, Rows(x, rows, cols, 1), kept.data(), k, out, a.data(), g.data()).good(), "status");
    assignment = a;
    group = g;
    Floats y = out.dense();
    y.insert(y.end(), a.begin(), a.end());
    return y;
  });
  const Array features(x, rows, cols), similarities = reference::similarities(features, kept);
  bool nearest = true;
  Ints members(static_cast<size_t>(k));
  for (int64_t i = 0; i < rows; i++) {
    const int32_t chosen = assignment[static_cast<size_t>(i)];
    for (int64_t c = 0; c < k; c++) nearest = nearest && similarities.at(i, chosen) >= similarities.at(i, c) - 1e-6;
    members[static_cast<size_t>(chosen)]++;
  }
  check(nearest, what + " assignment");
  check(group == members, what + " counts");
  check_close(Floats(tokens.begin(), tokens.begin() + k * cols), reference::means(features, assignment, k).data, 3e-6, what + " tokens");
}

DESAP_CASE(merge_shapes) {
  if (machine.tested_already()) return;
  for (int64_t rows : {1, 2, 17, 33, 97, 144, 256, 576}) {
    for (int64_t k : {int64_t{1}, int64_t{2}, rows / 9, rows / 4, rows}) {
      if (k < 1 || k > rows) continue;
      const int64_t cols = rows % 2 ? 40 : 64;
      Random random(static_cast<uint64_t>(rows * 3 + k));
      Ints kept(static_cast<size_t>(rows));
      std::iota(kept.begin(), kept.end(), 0);
      for (int64_t i = 0; i < rows; i++) std::swap(kept[static_cast<size_t>(i)], kept[static_cast<size_t>(random.below(rows))]);
      kept.resize(static_cast<size_t>(k));
      std::sort(kept.begin(), kept.end());
      check_merge(machine, random.floats(rows * cols), rows, cols, kept, shape({rows, cols, k}));
    }
  }
}

DESAP_CASE(merge_ties_go_to_the_first_centre) {
  const int64_t cols = 24, rows = 150;
  const Floats one = Random(21).floats(cols);
  for (int64_t k : {2, 7, 40, 150}) {
    Floats x;  // every row the same direction, lengths powers of two: all similarities are equal
    for (int64_t i = 0; i < rows; i++) {
      for (float v : one) x.push_back(std::ldexp(v, static_cast<int>(i % 5)));
    }
    Ints kept, assignment(static_cast<size_t>(rows)), group(static_cast<size_t>(k));
    for (int64_t c = 0; c < k; c++) kept.push_back(static_cast<int32_t>(c));
    Rows tokens(k, cols);
    merge(machine.one(), Rows(x, rows, cols), kept.data(), k, tokens, assignment.data(), group.data());
    bool ok = true;
    for (int64_t i = 0; i < rows; i++) ok = ok && assignment[static_cast<size_t>(i)] == (i < k ? i : 0);
    check(ok && group[0] == rows - k + 1, std::to_string(k) + " equal centres");
  }
}

DESAP_CASE(merge_zero_rows_and_negative_similarities) {
  const int64_t cols = 16;
  Floats x(5 * cols, 0.0f);
  for (int64_t d = 0; d < cols; d++) {
    x[static_cast<size_t>(0 * cols + d)] = 1;   // centre
    x[static_cast<size_t>(1 * cols + d)] = d % 2 ? 1.0f : 0.9f;  // centre
    x[static_cast<size_t>(2 * cols + d)] = -1;  // nearest of two opposites: the second
  }                                             // 3, 4: zero rows, equally far from all
  Ints assignment(5), group(2);
  const Ints kept = {0, 1};
  Rows tokens(2, cols);
  merge(machine.one(), Rows(x, 5, cols), kept.data(), 2, tokens, assignment.data(), group.data());
  check(assignment == Ints({0, 1, 1, 0, 0}) && group == Ints({3, 2}), "assignment");
  check(tokens.data[0] == 1.0f / 3, "mean with the centre and the zero rows");
  check(tokens.data[static_cast<size_t>(cols) + 1] == 0, "mean of opposites");
}

DESAP_CASE(kept_rows_stay_as_they_are) {
  const Floats x = {1.5f, -0.0f, 3e-39f, 2, 5, 7};
  const Ints kept = {0, 1};
  Ints assignment(2), group(2);
  Rows tokens(2, 3);
  merge(machine.one(), Rows(x, 2, 3), kept.data(), 2, tokens, assignment.data(), group.data());
  check(std::memcmp(tokens.data.data(), x.data(), sizeof(float) * 6) == 0, "bit for bit");
}

}  // namespace
}  // namespace desap::test
