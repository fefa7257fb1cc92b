// attention.cu against float64.
#include <set>

#include "heads.h"
#include "large.h"
#ifdef DESAP_SIMT
#include "../../cuda/scores.cuh"
#endif

namespace desap::test {
namespace {

// ---- Places: arithmetic of device code, for the host to prove where it can be compiled for it -----------------------

#ifdef DESAP_SIMT
// 8 lanes that read or write 16 bytes each touch all banks once.
template <class Place>
bool without_conflict(const Place& place) {
  std::set<int> banks;
  for (int lane = 0; lane < 8; lane++) banks.insert(place(lane) % 8);
  return banks.size() == 8;
}

DESAP_CUDA_CASE(head_rows_places) {
  for (int size : cuda::head_sizes) {
    const std::string what = "size " + std::to_string(size);
    const cuda::HeadRows places(size);
    constexpr int rows = 128;
    std::set<int> used;
    for (int row = 0; row < rows; row++) {
      for (int chunk = 0; chunk < places.chunks; chunk++) used.insert(places.at(row, chunk));
    }
    check(used.size() == static_cast<size_t>(rows * places.chunks) && *used.begin() == 0 &&
              *used.rbegin() == cuda::plane_chunks(rows, size) - 1,
          what + ": each place once");
    bool steps = true, rows_apart = true, copies = true, loads = true;
    for (int row = 0; row < rows; row++) {
      for (int chunk = 0; chunk < places.chunks; chunk++) {
        steps = steps && places.step(places.at(row, chunk % 2), chunk / 2) == places.at(row, chunk);
        rows_apart = rows_apart && (row < 8 || places.at(row, chunk) == places.at(row - 8, chunk) + 8 * places.chunks);
      }
    }
    check(steps, what + ": steps");
    check(rows_apart, what + ": rows");
    for (int first = 0; first < rows * places.chunks; first += 8) {
      copies = copies && without_conflict([&](int lane) {
        return places.at((first + lane) / places.chunks, (first + lane) % places.chunks);
      });
    }
    check(copies, what + ": bank conflicts of copies");
    for (int row = 0; row < rows; row += 16) {
      for (int step = 0; step < places.chunks / 2; step++) {
        for (int matrix = 0; matrix < 4; matrix++) {
          const auto lane_of = [&](int lane) { return matrix * 8 + lane; };
          loads = loads && without_conflict([&](int i) {
            return places.step(places.at(row + cuda::a_row(lane_of(i)), cuda::a_chunk(lane_of(i))), step);
          }) && without_conflict([&](int i) {
            return places.step(places.at(row + cuda::b_row(lane_of(i)), cuda::b_chunk(lane_of(i))), step);
          });
        }
      }
    }
    check(loads, what + ": bank conflicts of ldmatrix");
  }
}

#endif

// ---- attention ------------------------------------------------------------------------------------------------------

// Of the kernel's own arithmetic, for operands as they are; largest seen in the emulation: 1.5e-6, 4.4e-4, 3.6e-3. The
// rounding of y alone is 2^-23, 2^-12 and 2^-9.
double attention_tolerance(Precision precision) {
  return precision == Precision::fp32 ? 5e-6 : precision == Precision::fp16 ? 8e-4 : 6e-3;
}

DESAP_CUDA_CASE(attention_values) {
  const AttentionShape shapes[] = {
      {{1, 2, 17, 33}, 3, 8, true},  {{65}, 1, 16, false},    {{97, 5}, 4, 32, true},   {{145, 64, 128}, 1, 48, false},
      {{257}, 3, 64, true},          {{65, 17}, 4, 72, true}, {{33, 130}, 1, 80, true}, {{97}, 3, 96, false},
      {{2, 65, 1}, 1, 128, false},   {{64}, 2, 128, true},
  };
  for (Precision precision : precisions) {
    for (const AttentionShape& shape : shapes) {
      const std::string what = case_of(precision, shape.heads, shape.size);
      const Input input(queue, precision, shape.row_counts, shape.heads, shape.size, 1, shape.qq);
      const auto y = input.attend(queue);
      const Doubles expected = input.expected(queue, [&](const Array& q, const Array& k, const Array& v) {
        return reference::attention(q, k, v, shape.heads).data;
      });
      check_close(y->read(queue), expected, attention_tolerance(precision), what);
      check(y->padding_intact(), what + ": padding");
      check(same_bits(y->bits(), input.attend(queue, -1, true)->bits()), what + ": larger blocks differ");
    }
  }
}

// Scores up to hundreds, first at random, then rising with the key so that the softmax' shift has to follow. Their own
// rounding is then the error: 2^-22 of them, in the exponent. And a single key, equal values: the weights sum to 1
// whatever was rounded.
DESAP_CUDA_CASE(attention_extremes) {
  for (Precision precision : precisions) {
    constexpr int heads = 2, size = 64, columns = heads * size;
    const auto attend = [&](const Input& input, const std::string& what) {
      const Doubles expected = input.expected(queue, [&](const Array& q, const Array& k, const Array& v) {
        return reference::attention(q, k, v, heads).data;
      });
      const double exponent = precision == Precision::fp32 ? 1e-4 : 0;
      check_close(input.attend(queue)->read(queue), expected, attention_tolerance(precision) + exponent, what);
    };
    attend(Input(queue, precision, {97, 33}, heads, size, 8, true), case_of(precision, "large"));
    const Change rising = [](Floats& q, Floats& k, Floats&) {
      for (float& x : q) x = std::fabs(x);
      for (size_t i = 0; i < k.size(); i++) k[i] = 0.15f * (3 + k[i]) * static_cast<float>(i / columns);
    };
    attend(Input(queue, precision, {97}, heads, size, 1, false, false, rising), case_of(precision, "rising"));

    const Input single(queue, precision, {1, 1}, heads, size, 5, true);
    const Floats y = single.attend(queue)->read(queue), v = single.v->read(queue);
    const double rounding = precision == Precision::fp32 ? 3e-7 : 0;
    check_close(y, Doubles(v.begin(), v.end()), rounding, case_of(precision, "single"));
    const Change level = [](Floats&, Floats&, Floats& values) { values.assign(values.size(), 1.5f); };
    const Input equal(queue, precision, {77}, heads, size, 1, true, false, level);
    check_close(equal.attend(queue)->read(queue), Doubles(77 * columns, 1.5), 1e-6, case_of(precision, "equal values"));
  }
}

DESAP_CUDA_CASE(attention_batches) {
  const RowCounts row_counts = {33, 1, 97, 64};
  for (Precision precision : precisions) {
    for (int size : {40, 80}) {
      const std::string what = case_of(precision, 2, size);
      const Input input(queue, precision, row_counts, 2, size, 1, true);
      const Bits together = input.attend(queue)->hi.read();
      int64_t first = 0;
      for (int i = 0; i < 4; i++) {
        const auto alone = input.attend(queue, i);
        const int64_t count = row_counts[static_cast<size_t>(i)] * alone->ld;
        Bits expected(together.size(), 0xffff);   // nothing of the other images is written
        std::copy_n(together.begin() + first, count, expected.begin() + first);
        check(same_bits(alone->hi.read(), expected), what + ": alone");
        first += count;
      }
      check(repeats([&] { return input.attend(queue)->bits(); }), what + ": runs differ");
    }
  }
}

DESAP_CUDA_CASE(attention_not_finite) {
  const RowCounts row_counts = {40, 70};
  const int heads = 2, size = 32, columns = heads * size;
  for (Precision precision : precisions) {
    const Floats clean = Input(queue, precision, row_counts, heads, size, 1, false).attend(queue)->read(queue);
    // NaN in row 45 of q, k or v, of head 1: row 5 of the second image.
    for (int which = 0; which < 3; which++) {
      const Change put = [&](Floats& q, Floats& k, Floats& v) {
        (which == 0 ? q : which == 1 ? k : v)[45 * columns + 35] = NAN;
      };
      const Input input(queue, precision, row_counts, heads, size, 1, false, false, put);
      const Floats y = input.attend(queue)->read(queue);
      bool right = true;
      for (int i = 0; i < 110; i++) {
        for (int c = 0; c < columns; c++) {
          const size_t at = static_cast<size_t>(i * columns + c);
          const bool nan = i >= 40 && c >= size && (which == 0 ? i == 45 : which == 1 ? true : c == 35);
          right = right && (nan ? std::isnan(y[at]) : y[at] == clean[at]);
        }
      }
      check(right, case_of(precision, "NaN in ") + "qkv"[which]);
    }
  }
}

DESAP_CASE(attention_large) {
  const int64_t large[][3] = {{577, 16, 64}, {1025, 16, 64}, {4096, 16, 80}, {16384, 4, 128}, {16384, 3, 72}},
                tiny[][3] = {{65, 2, 64}};
  for (const auto& sizes : large) {
    const auto [rows, heads, size] = machine.small() ? tiny[0] : sizes;
    const int64_t width = heads * size;
    Random random(static_cast<uint64_t>(rows + size));
    const Floats q = random.floats(rows * width), k = random.floats(rows * width),
                 v = random.floats(rows * width);
    const std::string what = shape({rows, size});
    const auto matrix = [&, rows = rows](const Floats& x) { return ConstMatrix{x.data(), rows, width, width}; };
    const Floats y = machine.same<float>(what, [&, rows = rows, heads = heads](Context& context) {
      Rows result(rows, width);
      check(attention(context, matrix(q), matrix(k), matrix(v), heads, result).good(), "status");
      return result.dense();
    });
    const std::vector<int64_t> some = sample(rows, random);
    const Array queries(rows_of(q, width, some), static_cast<int64_t>(some.size()), width);
    const Array expected = reference::attention(queries, {k, rows, width}, {v, rows, width}, heads);
    check_close(rows_of(y, width, some), expected.data, machine.tolerance(5e-6), what);
    if (machine.small()) break;
  }
}

}  // namespace
}  // namespace desap::test
