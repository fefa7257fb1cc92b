// convert_half and convert_to_half: every value of binary16, the points around every middle, sizes that no vector divides.
#include "kernel_test.h"

namespace desap::test {
namespace {

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

}  // namespace
}  // namespace desap::test
