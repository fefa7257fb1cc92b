// linear.cu against float64.
#include <set>

#include "../../cuda/linear.cuh"
#include "large.h"
#include "operands.h"

namespace desap::test {
namespace {

// ---- Places in linear.cu's tiles ---------------------------------------------------------------------------------------

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

// ---- Products ---------------------------------------------------------------------------------------------------------

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
    cuda::Product result{};
    result.x = {slice.hi + before, slice.lo ? slice.lo + before : nullptr, slice.ld};
    result.rows = count;
    result.weights = layer;
    return result;
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

// Some rows of matrices that fill a GPU: more than one wave of tiles, tiles that end within a row of blocks.
DESAP_CASE(linear_large) {
  const int64_t large[][3] = {{577, 1024, 1024}, {4096, 1280, 3840}, {36928, 1024, 768}, {1025, 8192, 1000}},
                tiny[][3] = {{65, 128, 72}};
  for (const auto& sizes : large) {
    const auto [rows, in, out] = machine.small() ? tiny[0] : sizes;
    Random random(static_cast<uint64_t>(rows + out));
    const Floats x = random.floats(rows * in), w = random.floats(out * in), b = random.floats(out);
    const Floats y = machine.same<float>(shape({rows, out}), [&, rows = rows, in = in, out = out](Context& context) {
      Linear* packed = nullptr;
      check(linear_pack(context, {w.data(), out, in, in}, b.data(), &packed).good(), "pack");
      Rows result(rows, out);
      check(linear(context, {x.data(), rows, in, in}, *packed, result).good(), "status");
      linear_free(packed);
      return result.dense();
    });
    const std::vector<int64_t> some = sample(rows, random);
    const Array bias(b, 1, out);
    const Array expected =
        reference::linear(Array(rows_of(x, in, some), static_cast<int64_t>(some.size()), in), {w, out, in}, &bias);
    check_close(rows_of(y, out, some), expected.data, machine.tolerance(3e-6), shape({rows, out}));
    if (machine.small()) break;
  }
}

}  // namespace
}  // namespace desap::test
