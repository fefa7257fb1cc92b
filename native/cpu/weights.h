// What a head makes of its weights when it is created.
#pragma once

#include <memory>
#include <vector>

#include "../fold.h"
#include "../kernels.h"

namespace desap {

struct LinearFree {
  void operator()(Linear* linear) const { linear_free(linear); }
};
using LinearPointer = std::unique_ptr<Linear, LinearFree>;

inline Status pack(Context& context, const float* weight, const float* bias, int64_t out, int64_t in, LinearPointer& linear,
                   decltype(&linear_pack) pack_one = linear_pack) {
  Linear* packed = nullptr;
  DESAP_TRY(pack_one(context, {weight, out, in, in}, bias, &packed));
  linear.reset(packed);
  return {};
}

struct Rounded {
  explicit Rounded(const FoldedLayer& layer) : weight(layer.weight.begin(), layer.weight.end()), bias(layer.bias.begin(), layer.bias.end()) {}
  std::vector<float> weight, bias;
};

}  // namespace desap
