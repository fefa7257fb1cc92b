// Exact algebra on a head's weights, done once per head, in float64: it removes work from every image and changes no result
// but for rounding. Both backends use it; results are the same bits for every number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "head.h"

namespace desap {

// A layer behind a layer norm, with the norm's affine part folded in: W diag(gamma) [out, in], b + W beta [out].
struct FoldedLayer {
  std::vector<double> weight, bias;
};
FoldedLayer fold_norm(const float* weight, const float* bias, const float* gamma, const float* beta, int64_t out,
                      int64_t in);  // bias and beta may be null

// X C, with C the centring projector: subtracts from every row the mean of its elements.
void centre_rows(MatrixOf<double> x);

// The read-out as one square product. A row o of the context gives, with C as above,
//   y = C (W_o o + b_o),  rstd = 1 / sqrt(|y|^2 / D + epsilon),  p = rstd W_vis diag(gamma) y + W_vis beta,  A_d = p / |p|.
// W_vis diag(gamma) C = U B V^T, with U [E, E] and V [D, D] orthogonal and B [E, D] upper bidiagonal, turns that into
//   y~ = V^T y = (V^T C W_o) o + V^T C b_o,  |y~| = |y|,  U^T p = rstd B y~ + U^T W_vis beta:
// two terms per element of U^T p in place of a product with W_vis. Lengths and angles among rows of A_d are those among their
// U^T A_d, and those with text rows t follow from t U.
struct RotatedReadOut {
  std::vector<float> weight, bias;             // V^T C W_o [D, D], V^T C b_o [D]
  std::vector<float> diagonal, superdiagonal;  // B[k][k] and B[k][k + 1] [E]; 0 where B has no such element
  std::vector<float> shift;                    // U^T W_vis beta [E]
  std::vector<float> rotation;                 // U^T [E, E]: t U = t rotation^T, as `linear` computes it
};
// Reads out_*, post_norm_* and visual_projection of the weights.
RotatedReadOut rotate_read_out(const HeadConfig&, const HeadWeights&, int threads);

}  // namespace desap
