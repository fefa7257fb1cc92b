// What the cases of several kernels share. A kernel's cases are in <kernel>_test.cc: against float64, in shapes that no tile, vector
// or panel divides.
#pragma once

#include "harness.h"
#include "reference.h"

namespace desap::test {

using reference::Array;

constexpr float infinity = std::numeric_limits<float>::infinity();

// body(rows, heads, size of a head)
template <class Body>
void for_attention_shapes(const Machine& machine, const Body& body) {
  for (int64_t rows : {1, 2, 17, 33, 65, 97, 145, 257, 577}) {
    for (int64_t size : {16, 20, 32, 64, 80}) {
      if (rows == 577 && size != 64) continue;
      const int64_t heads = rows > 200 ? 1 : 3;
      if (machine.affords(static_cast<double>(rows * rows * heads * size))) body(rows, heads, size);
    }
  }
}

// body(x, first row at fault, what): 40 rows, two of which are not finite or leave float32 when they are squared. Twice each: what
// one call leaves behind must not reach the next.
template <class Body>
void for_rows_not_finite(const Body& body) {
  for (float bad : {NAN, infinity, -infinity, 3e38f}) {
    for (int64_t cols : {20, 64, 65}) {
      for (int64_t at : {int64_t{0}, int64_t{7}, cols - 1}) {
        Floats x = Random(7).floats(40 * cols);
        for (int64_t row : {23, 37}) {
          for (int64_t j = 0; j < cols; j++) x[static_cast<size_t>(row * cols + j)] = j == at ? bad : j % 3 == 0 ? -0.5f : 1.0f;
        }
        for (int run = 0; run < 2; run++) body(Rows(x, 40, cols), 23, std::to_string(bad) + " at " + std::to_string(at));
      }
    }
  }
}

}  // namespace desap::test
