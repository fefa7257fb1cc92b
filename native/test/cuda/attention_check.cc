// attention.cu and saliency.cu against float64.
#include <algorithm>
#include <set>

#include "../reference.h"
#include "cuda_harness.h"
#ifdef DESAP_SIMT
#include "../../cuda/scores.cuh"
#include "../simt/simt_control.h"
#endif

namespace desap::test {
namespace {

using cuda::Extent;
using cuda::Image;
using cuda::Operand;
using cuda::Queue;
using reference::Array;
using Tokens = std::vector<int>;   // of each image
using Bits = std::vector<uint16_t>;

constexpr double log2_e = 1.4426950408889634;

// ---- Layout: arithmetic of device code, for the host to prove where it can be compiled for it -----------------------

#ifdef DESAP_SIMT
// 8 lanes that read or write 16 bytes each touch all banks once.
template <class Place>
bool without_conflict(const Place& place) {
  std::set<int> banks;
  for (int lane = 0; lane < 8; lane++) banks.insert(place(lane) % 8);
  return banks.size() == 8;
}

DESAP_CUDA_CASE(head_rows_layout) {
  for (int size : cuda::head_sizes) {
    const std::string what = "size " + std::to_string(size);
    const cuda::HeadRows layout(size);
    constexpr int rows = 128;
    std::set<int> places;
    for (int row = 0; row < rows; row++) {
      for (int chunk = 0; chunk < layout.chunks; chunk++) places.insert(layout.at(row, chunk));
    }
    check(places.size() == static_cast<size_t>(rows * layout.chunks) && *places.begin() == 0 &&
              *places.rbegin() == cuda::plane_chunks(rows, size) - 1,
          what + ": each place once");
    bool steps = true, rows_apart = true, copies = true, loads = true;
    for (int row = 0; row < rows; row++) {
      for (int chunk = 0; chunk < layout.chunks; chunk++) {
        steps = steps && layout.step(layout.at(row, chunk % 2), chunk / 2) == layout.at(row, chunk);
        rows_apart = rows_apart && (row < 8 || layout.at(row, chunk) == layout.at(row - 8, chunk) + 8 * layout.chunks);
      }
    }
    check(steps, what + ": steps");
    check(rows_apart, what + ": rows");
    for (int first = 0; first < rows * layout.chunks; first += 8) {
      copies = copies && without_conflict([&](int lane) {
        return layout.at((first + lane) / layout.chunks, (first + lane) % layout.chunks);
      });
    }
    check(copies, what + ": bank conflicts of copies");
    for (int row = 0; row < rows; row += 16) {
      for (int step = 0; step < layout.chunks / 2; step++) {
        for (int matrix = 0; matrix < 4; matrix++) {
          const auto lane_of = [&](int lane) { return matrix * 8 + lane; };
          loads = loads && without_conflict([&](int i) {
            return layout.step(layout.at(row + cuda::a_row(lane_of(i)), cuda::a_chunk(lane_of(i))), step);
          }) && without_conflict([&](int i) {
            return layout.step(layout.at(row + cuda::b_row(lane_of(i)), cuda::b_chunk(lane_of(i))), step);
          });
        }
      }
    }
    check(loads, what + ": bank conflicts of ldmatrix");
  }
}

#endif

// ---- Operands and images --------------------------------------------------------------------------------------------

// A matrix [rows, heads * size] as an operand: each head padded to `padded` columns, and `gap` more between two rows.
struct Heads {
  Heads(Precision precision_, int64_t rows_, int heads_, int size_, int padded_, int gap)
      : precision(precision_), rows(rows_), heads(heads_), size(size_), padded(padded_), ld(heads * padded + gap),
        hi(rows * ld), lo(precision == Precision::fp32 ? rows * ld : 0) {}
  // Poisoned.
  Heads(Precision precision_, int64_t rows_, int heads_, int size_)
      : Heads(precision_, rows_, heads_, size_, cuda::padded_head_size(size_), 8) {}
  Heads(Queue& queue, Precision precision_, const Floats& x, int64_t rows_, int heads_, int size_)
      : Heads(precision_, rows_, heads_, size_) { write(queue, x); }
  // No heads, but columns padded to whole slices.
  Heads(Queue& queue, Precision precision_, const Floats& x, int64_t rows_, int columns_)
      : Heads(precision_, rows_, 1, columns_, static_cast<int>(cuda::padded_width(columns_)), 0) { write(queue, x); }

  int64_t columns() const { return heads * size; }
  Operand operand() const { return {hi.get(), precision == Precision::fp32 ? lo.get() : nullptr, ld}; }
  void write(Queue& queue, const Floats& x) const {
    const DeviceArray<float> values(x);
    const ConstMatrix matrix{values.get(), rows, columns(), columns()};
    cuda::to_operand(queue, precision, matrix, heads, padded, nullptr, operand());
    check(cudaDeviceSynchronize() == cudaSuccess, "to_operand");
  }
  Floats read(Queue& queue) const {
    const DeviceArray<float> values(rows * columns());
    const Matrix matrix{values.get(), rows, columns(), columns()};
    cuda::from_operand(queue, precision, operand(), heads, padded, nullptr, nullptr, matrix);
    return values.read();
  }
  Array array(Queue& queue) const { return Array(read(queue), rows, columns()); }
  Bits bits() const {
    Bits all = hi.read();
    const Bits low = lo.read();
    all.insert(all.end(), low.begin(), low.end());
    return all;
  }
  // The columns that pad each head are zero, those between two rows still poisoned.
  bool padding_intact() const {
    for (const Bits& plane : {hi.read(), lo.read()}) {
      for (size_t i = 0; i < plane.size(); i++) {
        const int64_t column = static_cast<int64_t>(i) % ld;
        if (column >= heads * padded && plane[i] != 0xffff) return false;
        if (column < heads * padded && column % padded >= size && (plane[i] & 0x7fff) != 0) return false;
      }
    }
    return true;
  }

  Precision precision;
  int64_t rows;
  int heads, size, padded;
  int64_t ld;
  DeviceArray<uint16_t> hi, lo;
};

struct Batch {
  Batch(const Tokens& tokens, bool class_token) {
    std::vector<Image> records;
    for (int rows : tokens) {
      Image image{};
      image.row = static_cast<int>(extent.rows);
      image.rows = rows;
      image.patch = static_cast<int>(extent.patches);
      image.patches = rows - class_token;
      extent.rows += rows;
      extent.patches += image.patches;
      extent.max_rows = std::max(extent.max_rows, rows);
      records.push_back(image);
    }
    extent.images = static_cast<int>(tokens.size());
    device = std::make_unique<DeviceArray<Image>>(records);
  }
  // Image `one` alone, or all for -1.
  const Image* images(int one = -1) const { return device->get() + std::max(one, 0); }
  Extent extent_of(int one, const Tokens& tokens) const {
    Extent of_one = extent;
    of_one.images = 1;
    if (one >= 0) of_one.max_rows = tokens[static_cast<size_t>(one)];
    return one < 0 ? extent : of_one;
  }
  Extent extent{};
  std::unique_ptr<DeviceArray<Image>> device;
};

Array rows_of(const Array& x, int64_t first, int64_t count) {
  Array part(count, x.cols);
  std::copy_n(x.data.begin() + first * x.cols, count * x.cols, part.data.begin());
  return part;
}
template <class T>
std::vector<T> part(const std::vector<T>& x, int64_t first, int64_t count) {
  return {x.begin() + first, x.begin() + first + count};
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Each head has a scale of its own, as if its queries had been scaled by a power of two.
Floats scales(int heads, int size) {
  Floats scale;
  for (int h = 0; h < heads; h++) scale.push_back(static_cast<float>(std::ldexp(log2_e / std::sqrt(size), h % 3 - 1)));
  return scale;
}
// q such that q . k / sqrt(size) is what scale makes of it, natural exponentials instead of those of 2.
Array scaled(Array q, int heads, const Floats& scale) {
  const int64_t size = q.cols / heads;
  for (int64_t c = 0; c < q.cols; c++) {
    const double factor = scale[static_cast<size_t>(c / size)] * std::sqrt(static_cast<double>(size)) / log2_e;
    for (int64_t i = 0; i < q.rows; i++) q.at(i, c) *= factor;
  }
  return q;
}

// Runs `body` once more with other orders of blocks and threads, where that is for us to choose.
template <class Body>
bool repeats(const Body& body) {
  const auto first = body();
  bool same = true;
  for (uint64_t seed = 2; seed <= 4; seed++) {
#ifdef DESAP_SIMT
    const simt::Settings before = simt::settings();
    simt::Settings other = before;
    other.seed = before.seed + seed;
    simt::configure(other);
#endif
    same = same && same_bits(first, body());
#ifdef DESAP_SIMT
    simt::configure(before);
#endif
  }
  return same;
}

using Change = std::function<void(Floats& q, Floats& k, Floats& v)>;

// q, k and v of some images; k is q in the qq form.
struct Input {
  Input(Queue& queue, Precision precision, const Tokens& tokens_, int heads_, int size_, float spread, bool qq,
        bool class_token = false, const Change& change = nullptr)
      : tokens(tokens_), heads(heads_), size(size_), batch(tokens, class_token), scale(scales(heads, size)),
        device_scale(scale) {
    Random random(data_seed + static_cast<uint64_t>(heads * 1000 + size));
    const int64_t rows = batch.extent.rows, count = rows * heads * size;
    Floats of_q = random.floats(count, spread), of_k = random.floats(count, spread), of_v = random.floats(count);
    if (change) change(of_q, of_k, of_v);
    q = std::make_unique<Heads>(queue, precision, of_q, rows, heads, size);
    if (!qq) k = std::make_unique<Heads>(queue, precision, of_k, rows, heads, size);
    v = std::make_unique<Heads>(queue, precision, of_v, rows, heads, size);
  }
  const Heads& keys() const { return k ? *k : *q; }

  // Of image `one` alone, or of all for -1. `spacious`: as if there were far larger images, so that blocks are larger.
  std::unique_ptr<Heads> attend(Queue& queue, int one = -1, bool spacious = false) const {
    auto y = std::make_unique<Heads>(q->precision, q->rows, heads, size);
    Extent extent = batch.extent_of(one, tokens);
    if (spacious) extent.max_rows = 300 * 128 / heads;
    cuda::attention(queue, q->precision, {batch.images(one), extent, heads, q->padded, q->operand(), keys().operand(),
                                          v->operand(), device_scale.get(), y->operand(), nullptr});
    return y;
  }
  // The patches begin 4 places from the start. Once by a pointer, once by a slot.
  Floats saliency(Queue& queue, bool class_token, int one = -1) const {
    const Extent extent = batch.extent_of(one, tokens);
    const DeviceArray<float> scratch(cuda::saliency_scratch(extent, heads, class_token)), result(extent.patches + 4);
    const DeviceArray<char*> slot(std::vector<char*>{reinterpret_cast<char*>(result.get())});
    cuda::Relocatable<float> to(result.get() + 4);
    if (one < 0) to = {slot.get(), 4 * sizeof(float)};
    cuda::saliency(queue, q->precision, {batch.images(one), extent, heads, q->padded, class_token, q->operand(),
                                         keys().operand(), device_scale.get(), scratch.get(), to, nullptr});
    return result.read();
  }
  // Per image what `compute` makes of its rows of q, k and v, one after the other.
  template <class Compute>
  Doubles expected(Queue& queue, const Compute& compute) const {
    const Array all_q = scaled(q->array(queue), heads, scale), all_k = keys().array(queue), all_v = v->array(queue);
    Doubles all;
    int64_t first = 0;
    for (int rows : tokens) {
      const Array image_k = rows_of(all_k, first, rows), image_v = rows_of(all_v, first, rows);
      const Doubles of_image = compute(rows_of(all_q, first, rows), image_k, image_v);
      all.insert(all.end(), of_image.begin(), of_image.end());
      first += rows;
    }
    return all;
  }

  Tokens tokens;
  int heads, size;
  Batch batch;
  Floats scale;
  DeviceArray<float> device_scale;
  std::unique_ptr<Heads> q, k, v;
};

std::string case_of(Precision precision, const char* what) { return std::string(name_of(precision)) + " " + what; }
std::string case_of(Precision precision, int heads, int size) {
  return std::string(name_of(precision)) + " " + std::to_string(heads) + " x " + std::to_string(size);
}
// NaN from `first` on and not before.
bool nan_from(const Floats& x, int first) {
  bool right = true;
  for (size_t i = 0; i < x.size(); i++) right = right && std::isnan(x[i]) == (static_cast<int>(i) >= first);
  return right;
}

// ---- attention ------------------------------------------------------------------------------------------------------

// Of the kernel's own arithmetic, for operands as they are; largest seen in the emulation: 1.5e-6, 4.4e-4, 3.6e-3. The
// rounding of y alone is 2^-23, 2^-12 and 2^-9.
double attention_tolerance(Precision precision) {
  return precision == Precision::fp32 ? 5e-6 : precision == Precision::fp16 ? 8e-4 : 6e-3;
}

struct Shape {
  Tokens tokens;
  int heads, size;
  bool qq;
};

DESAP_CUDA_CASE(attention_values) {
  const Shape shapes[] = {
      {{1, 2, 17, 33}, 3, 8, true},  {{65}, 1, 16, false},    {{97, 5}, 4, 32, true},   {{145, 64, 128}, 1, 48, false},
      {{257}, 3, 64, true},          {{65, 17}, 4, 72, true}, {{33, 130}, 1, 80, true}, {{97}, 3, 96, false},
      {{2, 65, 1}, 1, 128, false},   {{64}, 2, 128, true},
  };
  for (Precision precision : precisions) {
    for (const Shape& shape : shapes) {
      const std::string what = case_of(precision, shape.heads, shape.size);
      const Input input(queue, precision, shape.tokens, shape.heads, shape.size, 1, shape.qq);
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
  const Tokens tokens = {33, 1, 97, 64};
  for (Precision precision : precisions) {
    for (int size : {40, 80}) {
      const std::string what = case_of(precision, 2, size);
      const Input input(queue, precision, tokens, 2, size, 1, true);
      const Bits together = input.attend(queue)->hi.read();
      int64_t first = 0;
      for (int i = 0; i < 4; i++) {
        const auto alone = input.attend(queue, i);
        const int64_t count = tokens[static_cast<size_t>(i)] * alone->ld;
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
  const Tokens tokens = {40, 70};
  const int heads = 2, size = 32, columns = heads * size;
  for (Precision precision : precisions) {
    const Floats clean = Input(queue, precision, tokens, heads, size, 1, false).attend(queue)->read(queue);
    // NaN in row 45 of q, k or v, of head 1: row 5 of the second image.
    for (int which = 0; which < 3; which++) {
      const Change put = [&](Floats& q, Floats& k, Floats& v) {
        (which == 0 ? q : which == 1 ? k : v)[45 * columns + 35] = NAN;
      };
      const Input input(queue, precision, tokens, heads, size, 1, false, false, put);
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

// ---- saliency -------------------------------------------------------------------------------------------------------

// Scores and all that follows are float32 at every precision. Largest seen in the emulation: 8.4e-7.
constexpr double saliency_tolerance = 3e-6;

DESAP_CUDA_CASE(saliency_values) {
  const Shape shapes[] = {
      {{2, 17, 33}, 3, 8, true}, {{65}, 1, 16, false},   {{97, 5}, 4, 32, false},  {{145, 64, 128}, 1, 48, false},
      {{257}, 1, 64, false},     {{65, 2}, 4, 72, true}, {{33, 130}, 1, 80, false}, {{97}, 3, 96, false},
      {{2, 65}, 2, 128, false},
  };
  for (Precision precision : precisions) {
    for (const Shape& shape : shapes) {
      for (bool class_token : {false, true}) {
        const std::string what = case_of(precision, shape.heads, shape.size) + (class_token ? ", class token" : "");
        const Input input(queue, precision, shape.tokens, shape.heads, shape.size, 1, shape.qq, class_token);
        const Floats together = input.saliency(queue, class_token);
        const Doubles expected = input.expected(queue, [&](const Array& q, const Array& k, const Array&) {
          return reference::saliency(q, k, shape.heads, class_token);
        });
        check_close(part(together, 4, input.batch.extent.patches), expected, saliency_tolerance, what);
        int64_t first = 4;
        for (size_t i = 0; i < shape.tokens.size() && shape.tokens.size() > 1; i++) {
          const int64_t count = shape.tokens[i] - class_token;
          const Floats alone = input.saliency(queue, class_token, static_cast<int>(i));
          Floats left = DeviceArray<float>(input.batch.extent.patches + 4).read();   // nothing else is written
          std::copy_n(together.begin() + first, count, left.begin() + first);
          check(same_bits(alone, left), what + ": alone");
          first += count;
        }
      }
    }
  }
}

DESAP_CUDA_CASE(saliency_extremes) {
  for (Precision precision : precisions) {
    for (bool class_token : {false, true}) {
      const std::string what = case_of(precision, class_token ? "class token" : "all rows");
      const Input large(queue, precision, {97, 33}, 3, 64, 8, false, class_token);
      const Doubles expected = large.expected(queue, [&](const Array& q, const Array& k, const Array&) {
        return reference::saliency(q, k, 3, class_token);
      });
      const Floats result = large.saliency(queue, class_token);
      check_close(part(result, 4, large.batch.extent.patches), expected, 1e-4, what);
      check(repeats([&] { return large.saliency(queue, class_token); }), what + ": runs differ");

      const Change put = [](Floats& q, Floats&, Floats&) { q[40 * 192 + 70] = NAN; };   // the second image's first row
      const Input broken(queue, precision, {40, 33}, 3, 64, 1, false, class_token, put);
      const Floats nans = part(broken.saliency(queue, class_token), 4, broken.batch.extent.patches);
      check(nan_from(nans, 40 - class_token), what + ": NaN");
    }
  }
}

// ---- folded saliency ------------------------------------------------------------------------------------------------

// x^ [rows, width] and the weights of the keys [heads * padded, width], each row with its power of two.
struct FoldedInput {
  FoldedInput(Queue& queue, Precision precision_, const Tokens& tokens_, int heads_, int size_, int width,
              const std::function<void(Floats& q)>& change = nullptr)
      : precision(precision_), tokens(tokens_), heads(heads_), size(size_), padded(cuda::padded_head_size(size)),
        batch(tokens, true), scale(scales(heads, size)), device_scale(scale) {
    Random random(data_seed + static_cast<uint64_t>(heads * 1000 + size));
    const int64_t rows = batch.extent.rows;
    Floats queries = random.floats(rows * heads * size, 0.1f);
    if (change) change(queries);
    q = std::make_unique<Heads>(queue, precision, queries, rows, heads, size);
    normal = std::make_unique<Heads>(queue, precision, random.floats(rows * width), rows, width);
    Floats weights(static_cast<size_t>(heads * padded * width));
    for (int row = 0; row < heads * padded; row++) {
      const Floats of_row = random.floats(width, row % padded < size ? 0.7f : 0.0f);
      std::copy(of_row.begin(), of_row.end(), weights.begin() + row * width);
      key_scale.push_back(std::ldexp(1.0f, static_cast<int>(random.below(7)) - 6));
    }
    weight = std::make_unique<Heads>(queue, precision, weights, heads * padded, width);
    device_key_scale = std::make_unique<DeviceArray<float>>(key_scale);
  }

  Floats run(Queue& queue, int one = -1) const {
    const Extent extent = batch.extent_of(one, tokens);
    const int in = static_cast<int>(weight->ld);
    const DeviceArray<float> scratch(cuda::folded_saliency_scratch(extent, heads, in)), result(extent.patches);
    cuda::FoldedSaliency saliency{};
    saliency.images = batch.images(one);
    saliency.extent = extent;
    saliency.heads = heads;
    saliency.padded_size = padded;
    saliency.normal = normal->operand();
    saliency.q = q->operand();
    saliency.key = {weight->operand(), device_key_scale->get(), nullptr, heads * padded, in};
    saliency.scale = device_scale.get();
    saliency.scratch = scratch.get();
    saliency.saliency = result.get();
    cuda::folded_saliency(queue, precision, saliency);
    return result.read();
  }
  Doubles expected(Queue& queue) const {
    const Array all_q = scaled(q->array(queue), heads, scale), x = normal->array(queue), w = weight->array(queue);
    Array all_k(x.rows, heads * size);
    for (int64_t c = 0; c < all_k.cols; c++) {
      const int64_t row = c / size * padded + c % size;
      const double factor = key_scale[static_cast<size_t>(row)];
      for (int64_t i = 0; i < x.rows; i++) all_k.at(i, c) = reference::dot(x, i, w, row) * factor;
    }
    Doubles all;
    int64_t first = 0;
    for (int rows : tokens) {
      const Array image_k = rows_of(all_k, first, rows);
      const Doubles of_image = reference::saliency(rows_of(all_q, first, rows), image_k, heads, true);
      all.insert(all.end(), of_image.begin(), of_image.end());
      first += rows;
    }
    return all;
  }

  Precision precision;
  Tokens tokens;
  int heads, size, padded;
  Batch batch;
  Floats scale, key_scale;
  DeviceArray<float> device_scale;
  std::unique_ptr<DeviceArray<float>> device_key_scale;
  std::unique_ptr<Heads> q, normal, weight;
};

// u is rounded like any operand. Largest seen in the emulation: 3.5e-7, 1.2e-4, 2.0e-3.
double folded_tolerance(Precision precision) {
  return precision == Precision::fp32 ? 3e-6 : precision == Precision::fp16 ? 6e-4 : 6e-3;
}

DESAP_CUDA_CASE(folded_saliency_values) {
  struct FoldedShape {
    Tokens tokens;
    int heads, size, width;
  };
  const FoldedShape shapes[] = {
      {{2, 17, 33}, 3, 8, 24},
      {{65}, 1, 16, 64},
      {{97, 5}, 17, 32, 544},
      {{50, 257}, 4, 72, 288},
      {{33, 2, 65}, 2, 80, 130},
      {{33}, 3, 96, 1088},
      {{2, 65, 9, 33, 2, 40, 12, 31, 3, 64}, 2, 128, 256},
  };
  for (Precision precision : precisions) {
    for (const FoldedShape& shape : shapes) {
      const std::string what = case_of(precision, shape.heads, shape.size);
      const FoldedInput input(queue, precision, shape.tokens, shape.heads, shape.size, shape.width);
      const Floats together = input.run(queue);
      check_close(together, input.expected(queue), folded_tolerance(precision), what);
      check(repeats([&] { return input.run(queue); }), what + ": runs differ");
      int64_t first = 0;
      for (size_t i = 0; i < shape.tokens.size(); i++) {
        const int64_t count = shape.tokens[i] - 1;
        const Floats alone = input.run(queue, static_cast<int>(i));
        check(same_bits(part(alone, first, count), part(together, first, count)), what + ": alone");
        first += count;
      }
    }
    const auto put = [](Floats& q) { q[33 * 96 + 40] = NAN; };   // the second image's first row
    check(nan_from(FoldedInput(queue, precision, {33, 40}, 3, 32, 96, put).run(queue), 32), case_of(precision, "NaN"));
  }
}

}  // namespace
}  // namespace desap::test
