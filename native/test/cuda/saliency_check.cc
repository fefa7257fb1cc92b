// saliency.cu against float64.
#include "heads.h"

namespace desap::test {
namespace {

// Scores and all that follows are float32 at every precision. Largest seen in the emulation: 8.4e-7.
constexpr double saliency_tolerance = 3e-6;

DESAP_CUDA_CASE(saliency_values) {
  const AttentionShape shapes[] = {
      {{2, 17, 33}, 3, 8, true}, {{65}, 1, 16, false},   {{97, 5}, 4, 32, false},  {{145, 64, 128}, 1, 48, false},
      {{257}, 1, 64, false},     {{65, 2}, 4, 72, true}, {{33, 130}, 1, 80, false}, {{97}, 3, 96, false},
      {{2, 65}, 2, 128, false},
  };
  for (Precision precision : precisions) {
    for (const AttentionShape& shape : shapes) {
      for (bool class_token : {false, true}) {
        const std::string what = case_of(precision, shape.heads, shape.size) + (class_token ? ", class token" : "");
        const Input input(queue, precision, shape.row_counts, shape.heads, shape.size, 1, shape.qq, class_token);
        const Floats together = input.saliency(queue, class_token);
        const Doubles expected = input.expected(queue, [&](const Array& q, const Array& k, const Array&) {
          return reference::saliency(q, k, shape.heads, class_token);
        });
        check_close(part(together, 4, input.batch.extent.patches), expected, saliency_tolerance, what);
        int64_t first = 4;
        for (size_t i = 0; i < shape.row_counts.size() && shape.row_counts.size() > 1; i++) {
          const int64_t count = shape.row_counts[i] - class_token;
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

}  // namespace
}  // namespace desap::test
