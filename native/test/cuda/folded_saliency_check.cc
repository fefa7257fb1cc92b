// folded_saliency.cu against float64: what the head runs in place of saliency with a class token.
#include "heads.h"

namespace desap::test {
namespace {

// x^ [rows, width] and the weights of the keys [heads * padded, width], each row with its power of two.
struct FoldedInput {
  FoldedInput(Queue& queue, Precision precision_, const RowCounts& row_counts_, int heads_, int size_, int width,
              const std::function<void(Floats& q)>& change = nullptr)
      : precision(precision_), row_counts(row_counts_), heads(heads_), size(size_), padded(cuda::padded_head_size(size)),
        batch(row_counts, true), scale(scales(heads, size)), device_scale(scale) {
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
    const cuda::Extent extent = batch.extent_of(one, row_counts);
    const int in = static_cast<int>(weight->ld);
    const DeviceArray<float> scratch(cuda::folded_saliency_scratch(extent, heads, in)), result(extent.patches);
    cuda::FoldedSaliency saliency{};
    saliency.images = batch.records(one);
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
    for (int rows : row_counts) {
      const Array image_k = rows_of(all_k, first, rows);
      const Doubles of_image = reference::saliency(rows_of(all_q, first, rows), image_k, heads, true);
      all.insert(all.end(), of_image.begin(), of_image.end());
      first += rows;
    }
    return all;
  }

  Precision precision;
  RowCounts row_counts;
  int heads, size, padded;
  DeviceBatch batch;
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
    RowCounts row_counts;
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
      const FoldedInput input(queue, precision, shape.row_counts, shape.heads, shape.size, shape.width);
      const Floats together = input.run(queue);
      check_close(together, input.expected(queue), folded_tolerance(precision), what);
      check(repeats([&] { return input.run(queue); }), what + ": runs differ");
      int64_t first = 0;
      for (size_t i = 0; i < shape.row_counts.size(); i++) {
        const int64_t count = shape.row_counts[i] - 1;
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
