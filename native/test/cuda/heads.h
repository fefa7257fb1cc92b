// Heads in device memory and what is asked of them: the inputs of attention, saliency and folded_saliency.
#pragma once

#include <functional>
#include <memory>

#include "operands.h"
#ifdef DESAP_SIMT
#include "../simt/simt_control.h"
#endif

namespace desap::test {

using RowCounts = std::vector<int>;  // of each image

constexpr double log2_e = 1.4426950408889634;

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

// Images of so many rows, whose records are on the device.
struct DeviceBatch : Batch {
  DeviceBatch(const RowCounts& row_counts, bool class_token)
      : Batch(of_rows(row_counts, class_token)), device(std::make_unique<DeviceArray<cuda::Image>>(images)) {}
  // Image `one` alone, or all for -1.
  const cuda::Image* records(int one = -1) const { return device->get() + std::max(one, 0); }
  cuda::Extent extent_of(int one, const RowCounts& row_counts) const {
    cuda::Extent of_one = extent;
    of_one.images = 1;
    if (one >= 0) of_one.max_rows = row_counts[static_cast<size_t>(one)];
    return one < 0 ? extent : of_one;
  }
  std::unique_ptr<DeviceArray<cuda::Image>> device;
};

inline Array rows_of(const Array& x, int64_t first, int64_t count) {
  Array part(count, x.cols);
  std::copy_n(x.data.begin() + first * x.cols, count * x.cols, part.data.begin());
  return part;
}

// Each head has a scale of its own, as if its queries had been scaled by a power of two.
inline Floats scales(int heads, int size) {
  Floats scale;
  for (int h = 0; h < heads; h++) scale.push_back(static_cast<float>(std::ldexp(log2_e / std::sqrt(size), h % 3 - 1)));
  return scale;
}
// q such that q . k / sqrt(size) is what scale makes of it, natural exponentials instead of those of 2.
inline Array scaled(Array q, int heads, const Floats& scale) {
  const int64_t size = q.cols / heads;
  for (int64_t c = 0; c < q.cols; c++) {
    const double factor = scale[static_cast<size_t>(c / size)] * std::sqrt(static_cast<double>(size)) / log2_e;
    for (int64_t i = 0; i < q.rows; i++) q.at(i, c) *= factor;
  }
  return q;
}

// Runs `body` once more with other orders of blocks and threads, where that is for us to choose.
template <class Body>
inline bool repeats(const Body& body) {
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
  Input(Queue& queue, Precision precision, const RowCounts& row_counts_, int heads_, int size_, float spread, bool qq,
        bool class_token = false, const Change& change = nullptr)
      : row_counts(row_counts_), heads(heads_), size(size_), batch(row_counts, class_token), scale(scales(heads, size)),
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
    auto y = room();
    cuda::Attention to_y = attention(*y, one);
    if (spacious) to_y.extent.max_rows = 300 * 128 / heads;
    cuda::attention(queue, q->precision, to_y);
    return y;
  }
  std::unique_ptr<Heads> room() const { return std::make_unique<Heads>(q->precision, q->rows, heads, size); }
  cuda::Attention attention(const Heads& y, int one) const {
    cuda::Attention to_y{};
    to_y.images = batch.records(one);
    to_y.extent = batch.extent_of(one, row_counts);
    to_y.heads = heads;
    to_y.padded_size = q->padded;
    to_y.q = q->operand();
    to_y.k = keys().operand();
    to_y.v = v->operand();
    to_y.scale = device_scale.get();
    to_y.y = y.operand();
    return to_y;
  }
  // The patches begin 4 used from the start. Once by a pointer, once by a slot.
  Floats saliency(Queue& queue, bool class_token, int one = -1) const {
    const cuda::Extent extent = batch.extent_of(one, row_counts);
    const DeviceArray<float> scratch(cuda::saliency_scratch(extent, heads, class_token)), result(extent.patches + 4);
    const DeviceArray<char*> slot(std::vector<char*>{reinterpret_cast<char*>(result.get())});
    cuda::Relocatable<float> to(result.get() + 4);
    if (one < 0) to = {slot.get(), 4 * sizeof(float)};
    cuda::Saliency of_keys{};
    of_keys.images = batch.records(one);
    of_keys.extent = extent;
    of_keys.heads = heads;
    of_keys.padded_size = q->padded;
    of_keys.class_token = class_token;
    of_keys.q = q->operand();
    of_keys.k = keys().operand();
    of_keys.scale = device_scale.get();
    of_keys.scratch = scratch.get();
    of_keys.saliency = to;
    cuda::saliency(queue, q->precision, of_keys);
    return result.read();
  }
  // Per image what `compute` makes of its rows of q, k and v, one after the other.
  template <class Compute>
  Doubles expected(Queue& queue, const Compute& compute) const {
    const Array all_q = scaled(q->array(queue), heads, scale), all_k = keys().array(queue), all_v = v->array(queue);
    Doubles all;
    int64_t first = 0;
    for (int rows : row_counts) {
      const Array image_k = rows_of(all_k, first, rows), image_v = rows_of(all_v, first, rows);
      const Doubles of_image = compute(rows_of(all_q, first, rows), image_k, image_v);
      all.insert(all.end(), of_image.begin(), of_image.end());
      first += rows;
    }
    return all;
  }

  RowCounts row_counts;
  int heads, size;
  DeviceBatch batch;
  Floats scale;
  DeviceArray<float> device_scale;
  std::unique_ptr<Heads> q, k, v;
};

inline std::string case_of(Precision precision, const char* what) { return std::string(name_of(precision)) + " " + what; }
inline std::string case_of(Precision precision, int heads, int size) {
  return std::string(name_of(precision)) + " " + std::to_string(heads) + " x " + std::to_string(size);
}
// NaN from `first` on and not before.
inline bool nan_from(const Floats& x, int first) {
  bool right = true;
  for (size_t i = 0; i < x.size(); i++) right = right && std::isnan(x[i]) == (static_cast<int>(i) >= first);
  return right;
}

struct AttentionShape {
  RowCounts row_counts;
  int heads, size;
  bool qq;
};

}  // namespace desap::test
