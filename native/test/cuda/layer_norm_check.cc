// layer_norm.cu against float64: the kernel of the list, and what the head runs in its place.
#include "operands.h"

namespace desap::test {
namespace {

DESAP_CUDA_CASE(layer_norm) {
  Random random(3);
  for (int64_t width : row_widths) {
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

// Without weight and bias they count as 1 and 0.
DESAP_CASE(layer_norm_without_weights) {
  if (machine.tested_already()) return;
  const Floats x = Random(8).floats(5 * 40), ones(40, 1), zeros(40, 0);
  Rows with(5, 40), without(5, 40);
  check(layer_norm(machine.one(), Rows(x, 5, 40), ones.data(), zeros.data(), 1e-5f, with).good(), "with");
  check(layer_norm(machine.one(), Rows(x, 5, 40), nullptr, nullptr, 1e-5f, without).good(), "without");
  check(same_bits(with.data, without.data), "equal");
}

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
  cuda::Normalize n{};
  n.images = images.get();
  n.extent = batch.extent;
  n.width = static_cast<int>(width);
  n.half = sizeof(T) == 2;
  n.class_token = class_token;
  n.epsilon = 1e-5f;
  n.normal = normal;
  n.features = features.get();
  n.inverse_norm = inverse_norm.get();
  n.fault = fault.get();
  n.stamp = stamp.get();
  cuda::normalize(queue, precision, n);
  check(stamp.read()[0] != ~0ull, "stamp");
  return {normal.bits(), normal.read(), features.read(), inverse_norm.read(), fault.read()};
}

template <class T>
void check_normalize(Queue& queue, Precision precision, bool class_token, const std::vector<T>& hidden, const Floats& x, const std::vector<int>& row_counts, int64_t width) {
  const Batch batch = Batch::of_rows(row_counts, class_token);
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
  const Normalized alone = normalize(queue, precision, Batch::of_rows({last.rows}, class_token), class_token,
                                     part(hidden, last.row * width, last.rows * width), width, 1);
  check(same_bits(part(alone.normal, 0, last.rows * ld), part(actual.normal, last.row * ld, last.rows * ld)), what + ": alone");
  check(same_bits(alone.inverse_norm, part(actual.inverse_norm, last.patch, last.patches)), what + ": inverse norms alone");
}

DESAP_CUDA_CASE(normalize) {
  Random random(5);
  const std::vector<int> row_counts = {2, 17, 5, 3};
  for (int64_t width : row_widths) {
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
      check_normalize(queue, precision, class_token, x, x, row_counts, width);
      check_normalize(queue, precision, class_token, half, from_half, row_counts, width);
    }
  }
  for (float bad : {NAN, INFINITY, 1e20f}) {
    for (int at : {7, 20}) {
      Floats x = random.floats(27 * 32);
      x[static_cast<size_t>(at * 32 + 5)] = bad, x[26 * 32] = bad;
      check(normalize(queue, Precision::fp16, Batch::of_rows(row_counts, true), true, x, 32, 0).fault == at, "not finite: " + std::to_string(bad));
    }
  }
  // A norm beyond float32 while the variance is not: at fault where the merge needs the norm. Row 2 is a class token,
  // row 3 not.
  Floats x(27 * 32, 1);
  for (size_t i = 2 * 32; i < 4 * 32; i++) x[i] = 0x1p64f;
  check(normalize(queue, Precision::fp16, Batch::of_rows(row_counts, true), true, x, 32, 0).fault == 3, "overflow of a norm");
}

}  // namespace
}  // namespace desap::test
