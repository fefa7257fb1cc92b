// read_out.cu against float64: what the head runs in place of read_out, behind its products.
#include "operands.h"

namespace desap::test {
namespace {

struct Embedded {
  Floats rows, global;
  int fault;
};
Embedded folded_read_out(Queue& queue, const Batch& batch, bool class_token, const Floats& squares, int slices, const Floats& projected, const Floats& shift) {
  const int64_t rows = batch.extent.rows, width = static_cast<int64_t>(shift.size());
  const DeviceArray<cuda::Image> images(batch.images);
  const DeviceArray<float> device_squares(squares), device_shift(shift);
  const DeviceRows device_projected(projected, rows, width, 4);
  const DeviceArray<float> scratch(cuda::folded_read_out_scratch(batch.extent, static_cast<int>(width), class_token));
  const DeviceArray<float> embeddings(rows * width), global(batch.extent.images * width);
  const DeviceFault fault;
  cuda::FoldedReadOut e{};
  e.images = images.get();
  e.extent = batch.extent;
  e.width = slices * 64 - 3;
  e.projection_dim = static_cast<int>(width);
  e.class_token = class_token;
  e.epsilon = 1e-5f;
  e.squares = device_squares.get();
  e.slices = slices;
  e.projected = device_projected;
  e.shift = device_shift.get();
  e.scratch = scratch.get();
  e.embeddings = embeddings.get();
  e.global = global.get();
  e.fault = fault.get();
  cuda::folded_read_out(queue, e);
  scratch.read();
  return {embeddings.read(), global.read(), fault.read()};
}

DESAP_CUDA_CASE(folded_read_out_rows) {
  Random random(10);
  const std::vector<int> row_counts = {3, 700, 1, 40};
  for (int64_t width : {16, 20, 33, 200, 768, 1030}) {
    for (bool class_token : {true, false}) {
      const int slices = width == 768 ? 40 : 3;
      const Batch batch = Batch::of_rows(row_counts, class_token);
      const int64_t rows = batch.extent.rows;
      Floats squares = random.floats(rows * slices), projected = random.floats(rows * width, 5);
      for (float& s : squares) s = s * s + 0.5f;
      const Floats shift = random.floats(width);
      const Embedded actual = folded_read_out(queue, batch, class_token, squares, slices, projected, shift);

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
      const Embedded alone = folded_read_out(queue, Batch::of_rows({second.rows}, class_token), class_token, part(squares, second.row * slices, second.rows * slices), slices,
                                   part(projected, second.row * width, second.rows * width), shift);
      check(same_bits(alone.rows, part(actual.rows, second.row * width, second.rows * width)), what + ": alone");
      check(same_bits(alone.global, part(actual.global, width, width)), what + ": global alone");

      projected[static_cast<size_t>(100 * width)] = 1e25f;
      squares[static_cast<size_t>(60 * slices + 1)] = INFINITY;
      check(folded_read_out(queue, batch, class_token, squares, slices, projected, shift).fault == 60, what + ": overflow of squares");
      squares[static_cast<size_t>(60 * slices + 1)] = 0;
      check(folded_read_out(queue, batch, class_token, squares, slices, projected, shift).fault == 100, what + ": overflow of a row");
    }
  }
}

}  // namespace
}  // namespace desap::test
