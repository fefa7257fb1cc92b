// siglip_read_out.cu against float64 where more rows come than go through the MLP at once: rows of the first part, of the second, and
// the global vector behind them.
#include "../random_block.h"
#include "operands.h"

namespace desap::test {
namespace {

DESAP_CASE(siglip_read_out_in_parts) {
  const int64_t rows = 1024 + 9, width = 16, heads = 2, inner = 20;
  const RandomBlock w({width, heads, Norm::layer, true, inner});
  std::vector<Linear*> layers;
  const auto pack = [&](const Floats& weight, const Floats& bias, int64_t out, int64_t in) {
    layers.push_back(nullptr);
    check(linear_pack(machine.one(), {weight.data(), out, in, in}, bias.data(), &layers.back()).good(), "pack");
    return layers.back();
  };
  const Array bias(w.head_q_bias, 1, width), query = reference::linear({w.probe, 1, width}, {w.head_q, width, width}, &bias);
  const Floats queries(query.data.begin(), query.data.end());
  const SiglipReadOut weights{w.post_weight.data(), w.post_bias.data(), queries.data(),
                              pack(w.head_k, w.head_k_bias, width, width), pack(w.head_v, w.head_v_bias, width, width),
                              pack(w.head_out, w.head_out_bias, width, width), w.head_norm_weight.data(), w.head_norm_bias.data(),
                              pack(w.fc1, w.fc1_bias, inner, width), pack(w.fc2, w.fc2_bias, width, inner), heads, w.config.epsilon};
  Floats x = Random(5).floats(rows * width);
  Rows embeddings(rows, width, 2);
  Floats global(static_cast<size_t>(width)), saliency(static_cast<size_t>(rows));
  const auto run = [&] { return siglip_read_out(machine.one(), Rows(x, rows, width, 1), weights, embeddings, global.data(), saliency.data()); };
  check(run().good(), "status");
  const PooledHead64 expected = siglip_read_out64(w, {x, rows, width});
  const double tolerance = machine.tolerance(5e-6);
  check_close(embeddings.dense(), expected.embeddings.data, tolerance, "embeddings");
  check_close(global, expected.global.data, tolerance, "global");
  check_close(saliency, expected.saliency, tolerance, "saliency");
  x[static_cast<size_t>((1024 + 3) * width)] = NAN;
  check(is(run(), Code::not_finite, "x", 1024 + 3), "a row at fault");
  for (Linear* layer : layers) linear_free(layer);
}

}  // namespace
}  // namespace desap::test
