// align against float64.
#include "kernel_test.h"

namespace desap::test {
namespace {

DESAP_CASE(align_shapes) {
  if (machine.tested_already()) return;
  const int64_t shapes[][3] = {{1, 1, 16}, {2, 1, 20}, {17, 2, 33}, {33, 5, 64}, {64, 16, 80}, {97, 17, 48}, {145, 77, 65}, {576, 30, 96}, {49, 64, 32}, {50, 65, 32}};
  for (const auto& sizes : shapes) {
    const int64_t patches = sizes[0], text_tokens = sizes[1], size = sizes[2];
    Random random(static_cast<uint64_t>(patches * 31 + text_tokens));
    const auto unit = [&](int64_t rows) {
      const Array a = reference::unit_rows(Array(random.floats(rows * size), rows, size));
      return Floats(a.data.begin(), a.data.end());
    };
    const Floats visual = unit(patches), text = unit(text_tokens), end_of_text = unit(1), global = unit(1);
    for (Alignment alignment : {Alignment::fcma, Alignment::fcma_clamped, Alignment::mean}) {
      for (float lambda : {0.1f, 3.0f, 1000.0f, -2.0f}) {
        const reference::Aligned expected = reference::align({visual, patches, size}, {text, text_tokens, size}, {end_of_text, 1, size}, {global, 1, size}, alignment, lambda);
        const std::string what = shape({patches, text_tokens, size}) + " alignment " + std::to_string(static_cast<int>(alignment)) + " lambda " + std::to_string(lambda);
        const double tolerance = lambda > 100 ? 5e-4 : 5e-6;  // the exponent's own rounding, lambda 2^-24
        const size_t count = static_cast<size_t>(patches * text_tokens), rows = static_cast<size_t>(patches);
        const bool weights = alignment != Alignment::mean;
        const Floats y = machine.same<float>(what, [&](Context& context) {
          Floats task(rows), m(count), mv(count), mt(count), alone(rows);
          AlignmentMatrices matrices{m.data(), weights ? mv.data() : nullptr, weights ? mt.data() : nullptr};
          const Rows a(visual, patches, size, 3), b(text, text_tokens, size, 1);
          check(align(context, a, b, end_of_text.data(), global.data(), alignment, lambda, task.data(), matrices).good(), "status");
          check(align(context, a, b, end_of_text.data(), global.data(), alignment, lambda, alone.data(), {}).good(), "status");
          check(task == alone, "the matrices do not change the scores");
          return concatenate({task, m, mv, mt});
        });
        const auto part = [&](size_t begin, size_t size_) { return Floats(y.begin() + static_cast<int64_t>(begin), y.begin() + static_cast<int64_t>(begin + size_)); };
        check_close(part(0, rows), expected.task, tolerance * expected.cancellation, what + " task");
        check_close(part(rows, count), expected.similarity.data, 2e-6, what + " similarity");
        if (!weights) continue;
        check_close(part(rows + count, count), expected.visual.data, tolerance, what + " M_V");
        check_close(part(rows + 2 * count, count), expected.text.data, tolerance, what + " M_T");
      }
    }
  }
}

}  // namespace
}  // namespace desap::test
