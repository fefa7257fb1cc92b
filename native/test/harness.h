// A few lines of test harness: named cases over kernels.h and head.h, each run on every machine: an instruction set of
// this processor (machine_cpu.h), or a GPU at one precision (cuda/machine_cuda.h).
#pragma once

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "../kernels.h"

namespace desap::test {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Ints = std::vector<int32_t>;

struct Counts {
  int passed = 0, failed = 0;
};
inline Counts counts;
inline std::string place;  // "attention [avx2]"

inline bool check(bool condition, const std::string& what) {
  (condition ? counts.passed : counts.failed)++;
  if (!condition && counts.failed <= 100) std::printf("FAILED %s: %s\n", place.c_str(), what.c_str());
  return condition;
}

// max |actual - expected| / max |expected| <= tolerance; NaN fails. `typical` stands for max |expected| where that is smaller:
// a few sums whose terms cancel say nothing about the error to expect.
inline void check_close(const Floats& actual, const Doubles& expected, double tolerance, const std::string& what,
                        double typical = 0) {
  if (!check(actual.size() == expected.size(), what + ": size")) return;
  double largest = typical, error = 0;
  for (double x : expected) largest = std::fmax(largest, std::fabs(x));
  for (size_t i = 0; i < actual.size(); i++) {
    const double e = std::fabs(actual[i] - expected[i]);
    if (!(e <= error)) error = e;
  }
  check(error <= tolerance * largest, what + ": error " + std::to_string(error / largest / tolerance) + " of tolerance");
}

inline bool is(const Status& status, Code code, const char* what, int64_t where) {
  return status.code == code && status.what && std::strcmp(status.what, what) == 0 && status.where == where;
}

// A kind of context under test, as several contexts whose results must be equal bit for bit (thread counts, lanes).
struct Machine {
  std::string name;
  std::vector<std::shared_ptr<Context>> contexts;
  // What the matrix products do to the operands, and how much more error than float32's that allows.
  Precision precision = Precision::fp32;
  double operand_error = 1;
  // An emulated GPU takes milliseconds for what a GPU does in microseconds, and a sanitizer not much less: shapes
  // beyond this many multiply-adds are left out.
  double most_work = std::numeric_limits<double>::infinity();

  Context& one() const { return *contexts[0]; }
  bool affords(double multiply_adds) const { return multiply_adds <= most_work; }
  bool small() const { return !affords(1e12); }
  // Of a kernel without matrix products, which is one at every precision: enough where time is short.
  bool tested_already() const { return small() && precision != Precision::fp32; }
  // The tolerance of a result that went through matrix products, from the one that float32 products need.
  double tolerance(double float32) const { return float32 * operand_error; }

  // Runs `body`, which returns its outputs, on every context and twice on the last; all must agree bit for bit.
  template <class Result>
  std::vector<Result> same(const std::string& what, const std::function<std::vector<Result>(Context&)>& body) const {
    const std::vector<Result> first = body(*contexts[0]);
    bool equal = true;
    for (size_t i = 1; i <= contexts.size(); i++) {
      const std::vector<Result> again = body(*contexts[i < contexts.size() ? i : i - 1]);
      equal = equal && again.size() == first.size() &&
              (first.empty() || std::memcmp(again.data(), first.data(), first.size() * sizeof(Result)) == 0);
    }
    check(equal, what + ": differs between contexts or runs");
    return first;
  }
};

struct Case {
  const char* name;
  void (*run)(const Machine&);
};
inline std::vector<Case>& cases() {
  static std::vector<Case> list;
  return list;
}
struct Register {
  Register(const char* name, void (*run)(const Machine&)) { cases().push_back({name, run}); }
};

#define DESAP_CASE(name)                                                            \
  static void name(const ::desap::test::Machine&);                                  \
  static const ::desap::test::Register name##_registered(#name, name);              \
  static void name([[maybe_unused]] const ::desap::test::Machine& machine)

// Runs the cases whose name contains `wanted` (null: all).
inline void run_cases(const Machine& machine, const char* wanted) {
  const auto start = std::chrono::steady_clock::now();
  for (const Case& one : cases()) {
    if (wanted && !std::strstr(one.name, wanted)) continue;
    place = std::string(one.name) + " [" + machine.name + "]";
    one.run(machine);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%s: %.1f s\n", machine.name.c_str(), seconds);
}

// The last line of a test program, and its exit status.
inline int report() {
  std::printf("%d passed, %d failed\n", counts.passed, counts.failed);
  return counts.failed == 0 ? 0 : 1;
}

// Changes all data: 0, except where each run is to have data of its own.
inline uint64_t data_seed = 0;

// Reproducible data: a 64-bit linear congruential generator.
class Random {
 public:
  explicit Random(uint64_t seed) : state_((seed + data_seed) * 2654435761u + 1) {}
  float uniform() {  // in [-1, 1)
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 32)) * 0x1p-31f;
  }
  float normal() {  // variance 1, near enough to normal
    float sum = 0;
    for (int i = 0; i < 12; i++) sum += uniform();
    return sum * 0.5f;
  }
  int64_t below(int64_t n) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int64_t>(state_ >> 33) % n;
  }
  Floats floats(int64_t count, float scale = 1) {
    Floats x(static_cast<size_t>(count));
    for (float& v : x) v = normal() * scale;
    return x;
  }

 private:
  uint64_t state_;
};

// A matrix with rows `gap` elements longer than its columns; the gap holds NaN, which must reach no result and stay.
struct Rows {
  Rows(int64_t r, int64_t c, int64_t gap = 0) : rows(r), cols(c), ld(c + gap), data(static_cast<size_t>(r * ld), NAN) {}
  Rows(const Floats& x, int64_t r, int64_t c, int64_t gap = 0) : Rows(r, c, gap) {
    for (int64_t i = 0; i < r; i++) std::memcpy(&data[static_cast<size_t>(i * ld)], &x[static_cast<size_t>(i * c)], static_cast<size_t>(c) * 4);
  }
  operator Matrix() { return {data.data(), rows, cols, ld}; }
  operator ConstMatrix() const { return {data.data(), rows, cols, ld}; }
  // The columns without the gap; empty when the gap was written to.
  Floats dense() const {
    Floats x;
    for (int64_t i = 0; i < rows; i++) {
      const float* row = data.data() + i * ld;
      x.insert(x.end(), row, row + cols);
      for (int64_t j = cols; j < ld; j++) {
        if (row[j] == row[j]) return {};
      }
    }
    return x;
  }
  int64_t rows, cols, ld;
  Floats data;
};

// "577 x 16 x 64"
inline std::string shape(std::initializer_list<int64_t> sizes) {
  std::string text;
  for (int64_t size : sizes) text += (text.empty() ? "" : " x ") + std::to_string(size);
  return text;
}

inline Floats concatenate(std::initializer_list<Floats> parts) {
  Floats all;
  for (const Floats& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace desap::test
