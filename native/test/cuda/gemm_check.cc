// convert.cu, layer_norm.cu, unit_rows.cu, linear.cu and read_out.cu against float64.
#include <algorithm>
#include <climits>
#include <set>

#include "../../cuda/linear.cuh"
#include "../reference.h"
#include "cuda_harness.h"

namespace desap::test {
namespace {

using cuda::ConstOperand;
using cuda::Operand;
using cuda::Queue;
using reference::Array;
using Bits = std::vector<uint16_t>;

// ---- 16-bit numbers on the host ---------------------------------------------------------------------------------------

// x rounded to nearest even with `bits` bits, of which the last one is worth at least 2^lowest.
double rounded_to(double x, int bits, int lowest) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int last = std::max(std::ilogb(x) - bits + 1, lowest);
  return std::ldexp(std::nearbyint(std::ldexp(x, -last)), last);
}
double rounded(Precision precision, double x) {
  if (precision == Precision::bf16) return rounded_to(x, 8, -133);
  const double y = rounded_to(x, 11, -24);
  return std::fabs(y) > 65504 ? std::copysign(HUGE_VAL, y) : y;
}
double decoded(Precision precision, uint16_t bits) {
  const int mantissa_bits = precision == Precision::bf16 ? 7 : 10;
  const int exponents = precision == Precision::bf16 ? 255 : 31;
  const int exponent = (bits & 0x7fff) >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
  double x = exponent == exponents ? (mantissa ? NAN : HUGE_VAL)
             : exponent == 0       ? std::ldexp(mantissa, 2 - (exponents + 1) / 2 - mantissa_bits)
                                   : std::ldexp(mantissa + (1 << mantissa_bits), exponent + 1 - (exponents + 1) / 2 - mantissa_bits);
  return bits & 0x8000 ? -x : x;
}
// What an operand holds of x: hi, or hi + lo.
double kept_of(Precision precision, double x) {
  const double hi = rounded(precision, x);
  return precision == Precision::fp32 ? hi + rounded(precision, x - hi) : hi;
}

// ---- Operands and matrices in device memory ---------------------------------------------------------------------------

struct DeviceOperand {
  DeviceOperand(Precision precision_, int64_t rows_, int64_t ld_)
      : precision(precision_), rows(rows_), ld(ld_), hi(rows * ld), lo(precision == Precision::fp32 ? rows * ld : 0) {}
  operator Operand() const { return from(0); }
  operator ConstOperand() const { return from(0); }
  Operand from(int64_t row) const { return {hi.get() + row * ld, two_planes() ? lo.get() + row * ld : nullptr, ld}; }
  bool two_planes() const { return precision == Precision::fp32; }
  // All elements with their padding.
  Array read() const {
    const Bits h = hi.read(), l = lo.read();
    Array x(rows, ld);
    for (size_t i = 0; i < h.size(); i++) x.data[i] = decoded(precision, h[i]) + (two_planes() ? decoded(precision, l[i]) : 0);
    return x;
  }
  Bits bits() const {
    Bits all = hi.read();
    const Bits low = lo.read();
    all.insert(all.end(), low.begin(), low.end());
    return all;
  }
  Precision precision;
  int64_t rows, ld;
  DeviceArray<uint16_t> hi, lo;
};

// A matrix whose rows are `gap` elements longer than its columns; the gap is poisoned and must stay so.
struct DeviceRows {
  DeviceRows(int64_t r, int64_t c, int64_t gap) : rows(r), columns(c), ld(c + gap), data(r * ld) {}
  DeviceRows(const Floats& x, int64_t r, int64_t c, int64_t gap) : rows(r), columns(c), ld(c + gap), data(Rows(x, r, c, gap).data) {}
  operator Matrix() const { return {data.get(), rows, columns, ld}; }
  operator ConstMatrix() const { return {data.get(), rows, columns, ld}; }
  Floats dense() const {
    Rows all(rows, columns, ld - columns);
    all.data = data.read();
    const Floats x = all.dense();
    check(x.size() == static_cast<size_t>(rows * columns), "written between rows");
    return x;
  }
  int64_t rows, columns, ld;
  DeviceArray<float> data;
};

struct DeviceFault {
  DeviceFault() : place(std::vector<int>{INT_MAX}) {}
  int* get() const { return place.get(); }
  int read() const { return place.read()[0]; }
  DeviceArray<int> place;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}
template <class T>
std::vector<T> part(const std::vector<T>& x, int64_t from, int64_t count) {
  return {x.begin() + from, x.begin() + from + count};
}

// ---- Layout of linear.cu's tiles --------------------------------------------------------------------------------------

// The places that one phase of 8 lanes touches, 16 bytes each, must lie in different banks.
template <class Place>
bool without_conflict(int phase, const Place& place) {
  std::set<int> banks;
  for (int lane = phase * 8; lane < phase * 8 + 8; lane++) banks.insert(place(lane) % 8);
  return banks.size() == 8;
}

template <class Tile, Precision precision>
void check_tile(const std::string& what) {
  using Steps = cuda::Steps<Tile, precision>;
  constexpr int row_chunks = Steps::row_chunks;
  check(sizeof(Steps) <= 96 * 1024 && Steps::count >= 2, what + ": size");
  const auto place = [](int row, int chunk) { return cuda::place_of<row_chunks>(row, chunk); };
  for (int rows : {Tile::rows, Tile::columns}) {
    std::set<int> used;
    bool inside = true;
    for (int row = 0; row < rows; row++) {
      for (int chunk = 0; chunk < row_chunks; chunk++) {
        inside = inside && place(row, chunk) >= 0 && place(row, chunk) < rows * row_chunks;
        used.insert(place(row, chunk));
      }
    }
    check(inside && used.size() == static_cast<size_t>(rows * row_chunks), what + ": each place once");
    bool copies = true, moves = true;
    for (int first = 0; first < rows * row_chunks; first += 32) {
      for (int phase = 0; phase < 4; phase++) {
        copies = copies && without_conflict(phase, [&](int lane) { return place((first + lane) / row_chunks, (first + lane) % row_chunks); });
      }
    }
    check(copies, what + ": bank conflicts of copies");
    for (int row = 0; row < rows; row += 8) {
      for (int chunk = 0; chunk < row_chunks; chunk++) {
        for (int r = 0; r < 8; r++) moves = moves && place(row + r, chunk) == place(r, chunk) + row * row_chunks;
      }
    }
    check(moves, what + ": the same pattern in each 8 rows");
  }
  bool loads = true;
  for (int row = 0; row < Tile::columns; row += 16) {
    for (int chunk = 0; chunk < row_chunks; chunk += 2) {
      for (int phase = 0; phase < 4; phase++) {
        loads = loads && without_conflict(phase, [&](int lane) { return place(row + cuda::a_row(lane), chunk + cuda::a_chunk(lane)); });
        loads = loads && without_conflict(phase, [&](int lane) { return place(row + cuda::b_row(lane), chunk + cuda::b_chunk(lane)); });
      }
    }
  }
  check(loads, what + ": bank conflicts of loads");

  std::set<int> columns;
  bool consecutive = true, separable = true;
  constexpr int per_pass = Tile::threads / row_chunks;
  for (int slot = 0; slot < Tile::columns; slot++) {
    const int column = cuda::column_of(slot);
    if (column >= 0 && column < Tile::columns) columns.insert(column);
    // Fragment j of a group of 32 gives thread t of a row the columns 2t and 2t + 1 of its 8.
    const int group = slot / 32, j = slot / 8 % 4, t = slot % 8 / 2, e = slot % 2;
    consecutive = consecutive && column == group * 32 + t * 8 + j * 2 + e;
    separable = separable && column == cuda::column_of(slot % per_pass) + cuda::column_of(slot / per_pass * per_pass);
  }
  check(columns.size() == static_cast<size_t>(Tile::columns) && consecutive, what + ": columns");
  check(separable, what + ": columns of each pass");
}

DESAP_CUDA_CASE(linear_tiles) {
  check_tile<cuda::SmallTile, Precision::fp32>("small, two planes");
  check_tile<cuda::SmallTile, Precision::fp16>("small");
  check_tile<cuda::LargeTile, Precision::fp32>("large, two planes");
  check_tile<cuda::LargeTile, Precision::fp16>("large");
  check(cuda::tile_shape(577, 2048) == cuda::TileShape::small && cuda::tile_shape(64 * 577, 2048) == cuda::TileShape::large,
        "one image in small tiles, 64 in large ones");
  check(cuda::tiles_of<cuda::SmallTile>(577, 2048) >= 132, "one image occupies 132 processors");
}

// ---- convert.cu -------------------------------------------------------------------------------------------------------

DESAP_CUDA_CASE(convert_half) {
  Bits all(65536);
  for (size_t i = 0; i < all.size(); i++) all[i] = static_cast<uint16_t>(i);
  const DeviceArray<uint16_t> x(all);
  for (int64_t shift : {0, 1, 8}) {
    for (int64_t size : {1, 7, 8, 9, 2049, 65520}) {
      const DeviceArray<float> y(size);
      cuda::convert_half(queue, x.get() + shift, size, y.get());
      const Floats actual = y.read();
      bool equal = true;
      for (int64_t i = 0; i < size; i++) {
        const double expected = decoded(Precision::fp16, all[static_cast<size_t>(shift + i)]);
        const double got = actual[static_cast<size_t>(i)];
        equal = equal && (std::isnan(expected) ? std::isnan(got) : got == expected && std::signbit(got) == std::signbit(expected));
      }
      check(equal, "every number, " + std::to_string(size) + " from " + std::to_string(shift));
    }
  }
}

DESAP_CUDA_CASE(convert_to_half) {
  Random random(1);
  Floats values = {0.0f, -0.0f, 65504, 65519.99f, 65520, -1e10f, INFINITY, 0x1p-24f, 0x1p-25f, 0x1.000002p-25f, 1e-30f,
                   0x1.ffcp-15f, 0x1.ffep-15f, 1 + 0x1p-11f, 1 + 0x3p-11f, 2049, 2051};
  for (int i = 0; i < 2000; i++) values.push_back(random.normal() * std::exp2(static_cast<float>(random.below(44)) - 28));
  for (int64_t shift : {0, 1}) {
    for (int64_t size : {int64_t{1}, int64_t{9}, static_cast<int64_t>(values.size()) - 1}) {
      const DeviceArray<float> x(values);
      const DeviceArray<uint16_t> y(size);
      cuda::convert_to_half(queue, x.get() + shift, size, y.get());
      const Bits actual = y.read();
      bool equal = true;
      for (int64_t i = 0; i < size; i++) {
        equal = equal && decoded(Precision::fp16, actual[static_cast<size_t>(i)]) ==
                             rounded(Precision::fp16, values[static_cast<size_t>(shift + i)]);
      }
      check(equal, std::to_string(size) + " from " + std::to_string(shift));
    }
  }
}

DESAP_CUDA_CASE(magnitude) {
  const auto exponent_of = [&](const Floats& x, int64_t rows, int64_t columns) {
    const DeviceRows device(x, rows, columns, 3);
    const DeviceArray<int> exponent(1);
    cuda::magnitude(queue, device, exponent.get());
    return exponent.read()[0];
  };
  check(exponent_of({1}, 1, 1) == 11 && exponent_of({-1.99f}, 1, 1) == 11 && exponent_of({2}, 1, 1) == 10, "near 1");
  check(exponent_of({0, -0.0f}, 1, 2) == 0 && exponent_of({NAN, INFINITY}, 1, 2) == 0, "nothing finite");
  check(exponent_of({NAN, -INFINITY, 4096, 1}, 2, 2) == -1, "beside what is not finite");
  check(exponent_of({0x1p-149f}, 1, 1) == 160 && exponent_of({0x1.8p-130f}, 1, 1) == 141, "subnormal");
  check(exponent_of({std::numeric_limits<float>::max()}, 1, 1) == -116, "largest");
  Floats many(70 * 130, 0.5f);
  many[69 * 130 + 129] = -100;
  check(exponent_of(many, 70, 130) == 5, "the last element");
}

DESAP_CUDA_CASE(operands) {
  struct Shape { int64_t rows; int heads, size, padded; int64_t ld; };
  Random random(2);
  for (const Shape& s : {Shape{5, 1, 100, 128, 128}, Shape{3, 3, 20, 32, 128}, Shape{2, 2, 80, 80, 192}, Shape{4, 1, 2100, 2112, 2112}}) {
    const int64_t columns = s.heads * s.size;
    for (float magnitude : {1.0f, 1e-35f, 1e30f}) {
      const Floats x = random.floats(s.rows * columns, magnitude);
      const DeviceRows device(x, s.rows, columns, 1);
      const DeviceArray<int> exponent(1);
      cuda::magnitude(queue, device, exponent.get());
      const int e = exponent.read()[0];
      for (Precision precision : precisions) {
        const std::string what = std::string(name_of(precision)) + " " + std::to_string(columns) + " at " + std::to_string(magnitude);
        const DeviceOperand operand(precision, s.rows, s.ld);
        cuda::to_operand(queue, precision, device, s.heads, s.padded, exponent.get(), operand);
        const Array planes = operand.read();
        Array expected(s.rows, s.ld);
        for (int64_t i = 0; i < s.rows; i++) {
          for (int64_t j = 0; j < columns; j++) {
            expected.at(i, j / s.size * s.padded + j % s.size) =
                kept_of(precision, std::ldexp(static_cast<double>(x[static_cast<size_t>(i * columns + j)]), e));
          }
        }
        check(planes.data == expected.data, what + ": to");

        Floats scale;
        for (int h = 0; h < s.heads; h++) scale.push_back(std::exp2(static_cast<float>(h - 1)));
        const DeviceArray<float> device_scale(scale);
        const DeviceRows back(s.rows, columns, 2);
        cuda::from_operand(queue, precision, operand, s.heads, s.padded, exponent.get(), device_scale.get(), back);
        Doubles original;
        for (int64_t i = 0; i < s.rows * columns; i++) {
          original.push_back(static_cast<double>(x[static_cast<size_t>(i)]) * scale[static_cast<size_t>(i % columns / s.size)]);
        }
        check_close(back.dense(), original, precision == Precision::fp32 ? 0x1p-22 : precision == Precision::fp16 ? 0x1p-11 : 0x1p-8, what + ": from");
      }
    }
  }
}

// ---- layer_norm.cu, unit_rows.cu --------------------------------------------------------------------------------------

constexpr int64_t widths[] = {1, 20, 32, 33, 64, 100, 257, 1000, 1024, 1028, 1280, 2050};

DESAP_CUDA_CASE(layer_norm) {
  Random random(3);
  for (int64_t width : widths) {
    for (int64_t gap : {0, 3, 4}) {
      const int64_t rows = 5;
      Floats x = random.floats(rows * width);
      for (size_t i = 0; i < static_cast<size_t>(width); i++) x[i] += 300;   // mean far from zero
      const Floats weight = random.floats(width), bias = random.floats(width);
      const DeviceRows device(x, rows, width, gap), y(rows, width, gap);
      const DeviceArray<float> device_weight(weight), device_bias(bias);
      const DeviceFault fault;
      cuda::layer_norm(queue, device, device_weight.get(), device_bias.get(), 1e-5f, y, fault.get());
      const Array expected = reference::layer_norm({x, rows, width}, {weight, 1, width}, {bias, 1, width}, 1e-5);
      const std::string what = "width " + std::to_string(width) + " gap " + std::to_string(gap);
      const Floats actual = y.dense();
      check_close(part(actual, width, 4 * width), Doubles(expected.data.begin() + width, expected.data.end()), 1e-6, what);
      check_close(part(actual, 0, width), Doubles(expected.data.begin(), expected.data.begin() + width), 1e-4, what + ": large mean");
      check(fault.read() == INT_MAX, what + ": no fault");
      cuda::layer_norm(queue, device, device_weight.get(), device_bias.get(), 1e-5f, device, fault.get());
      check(same_bits(device.dense(), actual), what + ": in place");
    }
  }
  for (float bad : {NAN, INFINITY, -INFINITY, 1e25f}) {
    Floats x = random.floats(6 * 40);
    x[4 * 40 + 7] = bad, x[5 * 40] = bad;
    const DeviceRows device(x, 6, 40, 0);
    const DeviceArray<float> ones(Floats(40, 1));
    const DeviceFault fault;
    cuda::layer_norm(queue, device, ones.get(), ones.get(), 1e-5f, device, fault.get());
    check(fault.read() == 4, "not finite: " + std::to_string(bad));
  }
}

DESAP_CUDA_CASE(unit_rows) {
  Random random(4);
  for (int64_t width : widths) {
    for (int64_t gap : {0, 1, 4}) {
      const int64_t rows = 4;
      Floats x = random.floats(rows * width, 7);
      for (size_t i = 0; i < static_cast<size_t>(width); i++) x[i] = 0;
      const DeviceRows device(x, rows, width, gap), y(rows, width, gap);
      const DeviceFault fault;
      cuda::unit_rows(queue, device, y, fault.get());
      const std::string what = "width " + std::to_string(width) + " gap " + std::to_string(gap);
      const Floats actual = y.dense();
      check_close(actual, reference::unit_rows({x, rows, width}).data, 1e-6, what);
      check(fault.read() == INT_MAX, what + ": no fault");
      cuda::unit_rows(queue, device, device, fault.get());
      check(same_bits(device.dense(), actual), what + ": in place");
    }
  }
  for (float bad : {NAN, INFINITY, 1e20f}) {
    Floats x = random.floats(6 * 40);
    x[3 * 40 + 7] = bad, x[5 * 40] = bad;
    const DeviceRows device(x, 6, 40, 0);
    const DeviceFault fault;
    cuda::unit_rows(queue, device, device, fault.get());
    check(fault.read() == 3, "not finite: " + std::to_string(bad));
  }
}

// Images one after the other, of which normalize and embed read the rows and patches.
struct Batch {
  Batch(const std::vector<int>& tokens, bool class_token) {
    const int without = class_token ? 1 : 0;
    for (int n : tokens) {
      cuda::Image image{};
      image.row = static_cast<int>(extent.rows), image.rows = n;
      image.patch = static_cast<int>(extent.patches), image.patches = n - without;
      images.push_back(image);
      extent.rows += n, extent.patches += n - without, extent.images++;
      extent.max_rows = std::max(extent.max_rows, n), extent.max_patches = std::max(extent.max_patches, n - without);
    }
  }
  std::vector<cuda::Image> images;
  cuda::Extent extent{};
};

struct Normalized {
  Bits normal;
  Array values;
  Floats features, inverse_norm;
  int fault;
};
// `shift`: by how many elements the hidden states miss 16-byte alignment.
template <class T>
Normalized normalize(Queue& queue, Precision precision, Batch batch, bool class_token, const std::vector<T>& hidden, int64_t width, int64_t shift) {
  std::vector<T> shifted(static_cast<size_t>(shift));
  shifted.insert(shifted.end(), hidden.begin(), hidden.end());
  const DeviceArray<T> device(shifted);
  for (cuda::Image& image : batch.images) image.hidden = device.get() + shift + image.row * width;
  const DeviceArray<cuda::Image> images(batch.images);
  const DeviceOperand normal(precision, batch.extent.rows, cuda::padded_width(width));
  const DeviceArray<float> features(batch.extent.patches * width), inverse_norm(batch.extent.patches);
  const DeviceFault fault;
  const DeviceArray<unsigned long long> stamp(1);
  cuda::Normalize n{images.get(), batch.extent, static_cast<int>(width), sizeof(T) == 2, class_token, 1e-5f, normal,
                    features.get(), inverse_norm.get(), fault.get(), stamp.get()};
  cuda::normalize(queue, precision, n);
  check(stamp.read()[0] != ~0ull, "stamp");
  return {normal.bits(), normal.read(), features.read(), inverse_norm.read(), fault.read()};
}

template <class T>
void check_normalize(Queue& queue, Precision precision, bool class_token, const std::vector<T>& hidden, const Floats& x, const std::vector<int>& tokens, int64_t width) {
  const Batch batch(tokens, class_token);
  const int64_t rows = batch.extent.rows, ld = cuda::padded_width(width);
  const std::string what = std::string(name_of(precision)) + (sizeof(T) == 2 ? " half" : "") + " width " + std::to_string(width);
  const Normalized actual = normalize(queue, precision, batch, class_token, hidden, width, 0);
  check(actual.fault == INT_MAX, what + ": no fault");

  const Array expected = reference::layer_norm({x, rows, width}, {Floats(static_cast<size_t>(width), 1), 1, width},
                                               {Floats(static_cast<size_t>(width), 0), 1, width}, 1e-5);
  double error = 0, largest = 0;
  bool padding = true;
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < ld; j++) {
      if (j < width) {
        const double e = std::fabs(actual.values.at(i, j) - expected.at(i, j)) - std::fabs(expected.at(i, j)) *
                         (precision == Precision::fp32 ? 0 : precision == Precision::fp16 ? 0x1p-11 : 0x1p-8);
        if (!(e <= error)) error = e;
        largest = std::max(largest, std::fabs(expected.at(i, j)));
      } else {
        padding = padding && actual.values.at(i, j) == 0;
      }
    }
  }
  check(error <= 2e-6 * largest, what + ": error " + std::to_string(error));
  check(padding, what + ": padding");

  Floats features;
  Doubles inverse_norm;
  for (const cuda::Image& image : batch.images) {
    for (int p = 0; p < image.patches; p++) {
      double squares = 0;
      for (int64_t j = 0; j < width; j++) {
        features.push_back(x[static_cast<size_t>((image.row + image.rows - image.patches + p) * width + j)]);
        squares += static_cast<double>(features.back()) * features.back();
      }
      inverse_norm.push_back(squares == 0 ? 0 : 1 / std::sqrt(squares));
    }
  }
  check(same_bits(actual.features, features), what + ": features");
  check_close(actual.inverse_norm, inverse_norm, 1e-6, what + ": inverse norms");

  // The same bits for an image alone, and wherever it lies in memory.
  const cuda::Image& last = batch.images.back();
  const Normalized alone = normalize(queue, precision, Batch({last.rows}, class_token), class_token,
                                     part(hidden, last.row * width, last.rows * width), width, 1);
  check(same_bits(part(alone.normal, 0, last.rows * ld), part(actual.normal, last.row * ld, last.rows * ld)), what + ": alone");
  check(same_bits(alone.inverse_norm, part(actual.inverse_norm, last.patch, last.patches)), what + ": inverse norms alone");
}

DESAP_CUDA_CASE(normalize) {
  Random random(5);
  const std::vector<int> tokens = {2, 17, 5, 3};
  for (int64_t width : widths) {
    const bool class_token = width % 3 != 0;
    Bits half;
    Floats x, from_half;
    for (int i = 0; i < 27; i++) {
      for (int64_t j = 0; j < width; j++) {
        x.push_back(i == 9 ? 0 : random.normal() * 3 + (i == 8 ? 40.0f : 0));
        half.push_back(static_cast<uint16_t>(random.below(2) << 15 | (0x3000 + random.below(0x1000))));
        from_half.push_back(static_cast<float>(decoded(Precision::fp16, half.back())));
      }
    }
    for (Precision precision : precisions) {
      if (precision != Precision::fp32 && width > 1024) continue;
      check_normalize(queue, precision, class_token, x, x, tokens, width);
      check_normalize(queue, precision, class_token, half, from_half, tokens, width);
    }
  }
  for (float bad : {NAN, INFINITY, 1e20f}) {
    for (int at : {7, 20}) {
      Floats x = random.floats(27 * 32);
      x[static_cast<size_t>(at * 32 + 5)] = bad, x[26 * 32] = bad;
      check(normalize(queue, Precision::fp16, Batch(tokens, true), true, x, 32, 0).fault == at, "not finite: " + std::to_string(bad));
    }
  }
  // A norm beyond float32 while the variance is not: at fault where the merge needs the norm. Row 2 is a class token,
  // row 3 not.
  Floats x(27 * 32, 1);
  for (size_t i = 2 * 32; i < 4 * 32; i++) x[i] = 0x1p64f;
  check(normalize(queue, Precision::fp16, Batch(tokens, true), true, x, 32, 0).fault == 3, "overflow of a norm");
}

// ---- linear.cu --------------------------------------------------------------------------------------------------------

// x and a layer in device memory, and their product in float64 of what the operands stand for. x is a slice of a wider
// matrix.
struct LinearCase {
  static constexpr int64_t before = 64;   // columns of the wider matrix before x

  LinearCase(Queue& queue_, Random& random, Precision precision_, int64_t rows_, int64_t in_, int64_t out_, bool with_bias)
      : queue(queue_), precision(precision_), rows(rows_), in(in_), out(out_), x(precision, rows, before + in),
        weight(precision, out, in), scale_values(static_cast<size_t>(out)), bias_values(random.floats(out)),
        scale((random_powers(random), scale_values)), bias(bias_values), expected(rows, out) {
    const Array x_kept = fill(random, x), weight_kept = fill(random, weight);
    for (int64_t i = 0; i < rows; i++) {
      for (int64_t j = 0; j < out; j++) {
        double sum = 0;
        for (int64_t k = 0; k < in; k++) sum += x_kept.at(i, before + k) * weight_kept.at(j, k);
        const size_t n = static_cast<size_t>(j);
        expected.at(i, j) = sum * scale_values[n] + (with_bias ? bias_values[n] : 0.0f);
      }
    }
    layer = {weight, scale.get(), with_bias ? bias.get() : nullptr, static_cast<int>(out), static_cast<int>(in)};
    what = std::string(name_of(precision)) + " " + std::to_string(rows) + " x " + std::to_string(in) + " x " + std::to_string(out);
  }

  cuda::Product product(int64_t from, int64_t count) const {
    const Operand slice = x.from(from);
    return {{slice.hi + before, slice.lo ? slice.lo + before : nullptr, slice.ld}, count, layer, {}, 0, nullptr, {}, nullptr};
  }
  Floats values(cuda::TileShape shape, int64_t from, int64_t count, int64_t gap) const {
    const DeviceRows y(count, out, gap);
    cuda::Product p = product(from, count);
    p.values = y;
    cuda::multiply_rows(queue, precision, shape, p);
    return y.dense();
  }
  // The operand is a slice of a wider one, too.
  Bits operand(cuda::TileShape shape, int64_t from, int64_t count, Array* decoded_values) const {
    const DeviceOperand y(precision, count, 8 + out + 16);
    cuda::Product p = product(from, count);
    p.operand = {y.hi.get() + 8, y.two_planes() ? y.lo.get() + 8 : nullptr, y.ld};
    cuda::multiply_rows(queue, precision, shape, p);
    const Bits hi = y.hi.read(), lo = y.lo.read();
    Bits all;
    bool outside = true;
    for (const Bits* plane : {&hi, &lo}) {
      for (int64_t i = 0; i < static_cast<int64_t>(plane->size()); i++) {
        const uint16_t bits = (*plane)[static_cast<size_t>(i)];
        const int64_t column = i % y.ld - 8;
        if (column >= 0 && column < out) {
          all.push_back(bits);
        } else {
          outside = outside && bits == 0xffff;
        }
      }
    }
    check(outside, what + ": written beside the operand");
    if (decoded_values) *decoded_values = y.read();
    return all;
  }
  struct Squares {
    Floats squares, values;
  };
  Squares squares(cuda::TileShape shape, int64_t from, int64_t count, int64_t squared) const {
    const DeviceRows y(count, out - squared, 4);
    const DeviceArray<float> sums(count * (squared / 64));
    cuda::Product p = product(from, count);
    p.squared = static_cast<int>(squared);
    p.squares = sums.get();
    p.values = y;
    cuda::multiply_rows(queue, precision, shape, p);
    return {sums.read(), y.dense()};
  }

  Queue& queue;
  Precision precision;
  int64_t rows, in, out;
  DeviceOperand x, weight;
  Floats scale_values, bias_values;
  DeviceArray<float> scale, bias;
  Array expected;
  cuda::Weights layer{};
  std::string what;

 private:
  void random_powers(Random& random) {
    for (float& s : scale_values) s = std::exp2(static_cast<float>(random.below(5)) - 2);
  }
  // Random numbers, and what is kept of them (in fp32: they themselves).
  Array fill(Random& random, const DeviceOperand& to) const {
    const Floats values = random.floats(to.rows * to.ld);
    cuda::to_operand(queue, precision, DeviceRows(values, to.rows, to.ld, 0), 1, static_cast<int>(to.ld), nullptr, to);
    return to.two_planes() ? Array(values, to.rows, to.ld) : to.read();
  }
};

// Tensor cores cut sums off where float32 would round: an error that grows with every step along `in`.
double product_tolerance(int64_t in) { return 1e-6 + 1e-8 * static_cast<double>(in); }
constexpr cuda::TileShape shapes[] = {cuda::TileShape::small, cuda::TileShape::large};

DESAP_CUDA_CASE(linear_values) {
  struct Shape { int64_t rows, in, out; };
  Random random(6);
  for (const Shape& s : {Shape{1, 64, 16}, Shape{2, 64, 20}, Shape{17, 128, 24}, Shape{33, 192, 64}, Shape{65, 64, 200},
                         Shape{97, 320, 33}, Shape{145, 128, 130}, Shape{257, 64, 200}, Shape{9, 512, 129}}) {
    for (Precision precision : precisions) {
      const LinearCase one(queue, random, precision, s.rows, s.in, s.out, s.rows % 3 != 0);
      const Floats small = one.values(cuda::TileShape::small, 0, s.rows, 0);
      check_close(small, one.expected.data, product_tolerance(s.in), one.what);
      check(same_bits(one.values(cuda::TileShape::large, 0, s.rows, 3), small), one.what + ": large tiles");
      const int64_t from = s.rows / 3, count = s.rows - from;
      for (cuda::TileShape shape : shapes) {
        check(same_bits(one.values(shape, from, count, 4), part(small, from * s.out, count * s.out)), one.what + ": some rows");
      }
    }
  }
}

DESAP_CUDA_CASE(linear_operand) {
  struct Shape { int64_t rows, in, out; };
  Random random(7);
  for (const Shape& s : {Shape{1, 64, 8}, Shape{33, 256, 24}, Shape{65, 64, 200}, Shape{257, 128, 64}}) {
    for (Precision precision : precisions) {
      const LinearCase one(queue, random, precision, s.rows, s.in, s.out, s.rows != 33);
      Array all(0, 0);
      const Bits small = one.operand(cuda::TileShape::small, 0, s.rows, &all);
      // The same numbers as the float32 form, rounded.
      const Floats values = one.values(cuda::TileShape::small, 0, s.rows, 0);
      bool equal = true;
      for (int64_t i = 0; i < s.rows; i++) {
        for (int64_t j = 0; j < s.out; j++) {
          equal = equal && all.at(i, 8 + j) == kept_of(precision, values[static_cast<size_t>(i * s.out + j)]);
        }
      }
      check(equal, one.what + ": rounded");
      check(same_bits(one.operand(cuda::TileShape::large, 0, s.rows, nullptr), small), one.what + ": large tiles");
    }
  }
}

DESAP_CUDA_CASE(linear_squares) {
  struct Shape { int64_t rows, in, squared, out; };
  Random random(8);
  for (const Shape& s : {Shape{3, 64, 64, 20}, Shape{65, 128, 192, 33}, Shape{257, 64, 128, 72}}) {
    for (Precision precision : precisions) {
      const LinearCase one(queue, random, precision, s.rows, s.in, s.squared + s.out, true);
      const LinearCase::Squares small = one.squares(cuda::TileShape::small, 0, s.rows, s.squared);
      Doubles sums, values;
      for (int64_t i = 0; i < s.rows; i++) {
        for (int64_t slice = 0; slice < s.squared; slice += 64) {
          sums.push_back(0);
          for (int64_t j = slice; j < slice + 64; j++) sums.back() += one.expected.at(i, j) * one.expected.at(i, j);
        }
        for (int64_t j = s.squared; j < s.squared + s.out; j++) values.push_back(one.expected.at(i, j));
      }
      check_close(small.squares, sums, 2 * product_tolerance(s.in), one.what + ": squares");
      check_close(small.values, values, product_tolerance(s.in), one.what + ": values");
      const LinearCase::Squares large = one.squares(cuda::TileShape::large, 0, s.rows, s.squared);
      check(same_bits(large.squares, small.squares) && same_bits(large.values, small.values), one.what + ": large tiles");
      const int64_t from = s.rows / 2, count = s.rows - from, slices = s.squared / 64;
      const LinearCase::Squares some = one.squares(cuda::TileShape::small, from, count, s.squared);
      check(same_bits(some.squares, part(small.squares, from * slices, count * slices)) &&
                same_bits(some.values, part(small.values, from * s.out, count * s.out)), one.what + ": some rows");
    }
  }
}

// The launchers of kernels.cuh, which choose the tiles.
DESAP_CUDA_CASE(linear_launchers) {
  Random random(9);
  const LinearCase one(queue, random, Precision::fp16, 20, 64, 72, true);
  const cuda::Product p = one.product(0, 20);
  const DeviceArray<unsigned long long> stamp(1);
  const DeviceRows values(20, 72, 0), rest(20, 8, 0);
  cuda::linear(queue, one.precision, p.x, 20, one.layer, Matrix(values), stamp.get());
  check(same_bits(values.dense(), one.values(cuda::TileShape::small, 0, 20, 0)), "values");
  check(stamp.read()[0] != ~0ull, "stamp");
  const DeviceOperand operand(one.precision, 20, 72);
  cuda::linear(queue, one.precision, p.x, 20, one.layer, Operand(operand), nullptr);
  check(same_bits(operand.bits(), one.operand(cuda::TileShape::small, 0, 20, nullptr)), "operand");
  const DeviceArray<float> squares(20);
  cuda::linear_squares(queue, one.precision, p.x, 20, one.layer, 64, squares.get(), rest, nullptr);
  const LinearCase::Squares expected = one.squares(cuda::TileShape::small, 0, 20, 64);
  check(same_bits(squares.read(), expected.squares) && same_bits(rest.dense(), expected.values), "squares");
}

// ---- read_out.cu ------------------------------------------------------------------------------------------------------

struct Embedded {
  Floats rows, global;
  int fault;
};
Embedded embed(Queue& queue, const Batch& batch, bool class_token, const Floats& squares, int slices, const Floats& projected, const Floats& shift) {
  const int64_t rows = batch.extent.rows, width = static_cast<int64_t>(shift.size());
  const DeviceArray<cuda::Image> images(batch.images);
  const DeviceArray<float> device_squares(squares), device_shift(shift);
  const DeviceRows device_projected(projected, rows, width, 4);
  const DeviceArray<float> scratch(cuda::embed_scratch(batch.extent, static_cast<int>(width), class_token));
  const DeviceArray<float> embedding(rows * width), global(batch.extent.images * width);
  const DeviceFault fault;
  const cuda::Embed e{images.get(), batch.extent, slices * 64 - 3, static_cast<int>(width), class_token, 1e-5f, device_squares.get(),
                      slices, device_projected, device_shift.get(), scratch.get(), embedding.get(), global.get(), fault.get(), nullptr};
  cuda::embed(queue, e);
  scratch.read();
  return {embedding.read(), global.read(), fault.read()};
}

DESAP_CUDA_CASE(embed) {
  Random random(10);
  const std::vector<int> tokens = {3, 700, 1, 40};
  for (int64_t width : {16, 20, 33, 200, 768, 1030}) {
    for (bool class_token : {true, false}) {
      const int slices = width == 768 ? 40 : 3;
      const Batch batch(tokens, class_token);
      const int64_t rows = batch.extent.rows;
      Floats squares = random.floats(rows * slices), projected = random.floats(rows * width, 5);
      for (float& s : squares) s = s * s + 0.5f;
      const Floats shift = random.floats(width);
      const Embedded actual = embed(queue, batch, class_token, squares, slices, projected, shift);

      Array raw(rows, width), global(batch.extent.images, width);
      for (int64_t i = 0; i < rows; i++) {
        double sum = 0;
        for (int s = 0; s < slices; s++) sum += squares[static_cast<size_t>(i * slices + s)];
        for (int64_t j = 0; j < width; j++) {
          raw.at(i, j) = projected[static_cast<size_t>(i * width + j)] / std::sqrt(sum / (slices * 64 - 3) + 1e-5f) + shift[static_cast<size_t>(j)];
        }
      }
      const Array expected = reference::unit_rows(raw);
      for (int64_t b = 0; b < batch.extent.images; b++) {
        const cuda::Image& image = batch.images[static_cast<size_t>(b)];
        for (int64_t i = 0; i < (class_token ? 1 : image.rows); i++) {
          for (int64_t j = 0; j < width; j++) global.at(b, j) += expected.at(image.row + i, j);
        }
      }
      const std::string what = std::to_string(width) + (class_token ? " with" : " without") + " class token";
      check_close(actual.rows, expected.data, 1e-6, what);
      check_close(actual.global, reference::unit_rows(global).data, 2e-6, what + ": global");
      check(actual.fault == INT_MAX, what + ": no fault");

      const cuda::Image& second = batch.images[1];
      const Embedded alone = embed(queue, Batch({second.rows}, class_token), class_token, part(squares, second.row * slices, second.rows * slices), slices,
                                   part(projected, second.row * width, second.rows * width), shift);
      check(same_bits(alone.rows, part(actual.rows, second.row * width, second.rows * width)), what + ": alone");
      check(same_bits(alone.global, part(actual.global, width, width)), what + ": global alone");

      projected[static_cast<size_t>(100 * width)] = 1e25f;
      squares[static_cast<size_t>(60 * slices + 1)] = INFINITY;
      check(embed(queue, batch, class_token, squares, slices, projected, shift).fault == 60, what + ": overflow of squares");
      squares[static_cast<size_t>(60 * slices + 1)] = 0;
      check(embed(queue, batch, class_token, squares, slices, projected, shift).fault == 100, what + ": overflow of a row");
    }
  }
}

}  // namespace
}  // namespace desap::test
