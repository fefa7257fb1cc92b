// siglip_read_out against float64: rows by themselves, the global vector and the probe's attention.
#include "kernel_test.h"
#include "random_block.h"

namespace desap::test {
namespace {

// The read-out's weights, packed where they are read.
struct PackedPooling {
  PackedPooling(Context& context, const RandomBlock& w) {
    const int64_t d = w.config.width, f = w.config.mlp_width;
    const auto pack = [&](const Floats& weight, const Floats& bias, int64_t out, int64_t in, const Linear** to) {
      Linear* packed = nullptr;
      check(linear_pack(context, {weight.data(), out, in, in}, bias.data(), &packed).good(), "pack");
      all.push_back(packed);
      *to = packed;
    };
    const Array projected = reference::linear({w.probe, 1, d}, {w.head_q, d, d}, nullptr);
    for (size_t i = 0; i < projected.data.size(); i++) query.push_back(static_cast<float>(projected.data[i] + static_cast<double>(w.head_q_bias[i])));
    weights.post_norm_weight = w.post_weight.data(), weights.post_norm_bias = w.post_bias.data();
    weights.query = query.data();
    weights.norm_weight = w.head_norm_weight.data(), weights.norm_bias = w.head_norm_bias.data();
    weights.heads = w.config.heads;
    weights.epsilon = w.config.epsilon;
    pack(w.head_k, w.head_k_bias, d, d, &weights.key);
    pack(w.head_v, w.head_v_bias, d, d, &weights.value);
    pack(w.head_out, w.head_out_bias, d, d, &weights.out);
    pack(w.fc1, w.fc1_bias, f, d, &weights.fc1);
    pack(w.fc2, w.fc2_bias, d, f, &weights.fc2);
  }
  ~PackedPooling() {
    for (Linear* one : all) linear_free(one);
  }
  PackedPooling(const PackedPooling&) = delete;

  SiglipReadOut weights{};
  Floats query;
  std::vector<Linear*> all;
};

DESAP_CASE(siglip_read_out_against_float64) {
  // More rows than go through the MLP at once only where that is quick.
  const int64_t shapes[][4] = {{1, 16, 1, 24}, {2, 20, 4, 33}, {17, 72, 3, 40}, {131, 48, 2, 100}, {300, 33, 3, 7}, {2500, 64, 2, 96}};
  for (const auto& [rows, width, heads, inner] : shapes) {
    if (!machine.affords(static_cast<double>(rows * width * (inner + width)) / 4)) continue;
    const RandomBlock w({width, heads, Norm::layer, true, inner}, static_cast<uint64_t>(rows));
    const Floats attention = Random(static_cast<uint64_t>(width)).floats(rows * width);
    const std::string what = shape({rows, width, heads, inner});
    const Floats all = machine.same<float>(what, [&, rows = rows, width = width](Context& context) {
      const PackedPooling packed(context, w);
      Rows embeddings(rows, width, 3);
      Floats global(static_cast<size_t>(width)), saliency(static_cast<size_t>(rows));
      check(siglip_read_out(context, Rows(attention, rows, width, 1), packed.weights, embeddings, global.data(), saliency.data()).good(), "status");
      return concatenate({embeddings.dense(), global, saliency});
    });
    const PooledHead64 expected = siglip_read_out64(w, {attention, rows, width});
    const double tolerance = machine.tolerance(5e-6);
    const auto global = all.begin() + rows * width, saliency = global + width;
    check_close(Floats(all.begin(), global), expected.embeddings.data, tolerance, what + " embeddings");
    check_close(Floats(global, saliency), expected.global.data, tolerance, what + " global");
    check_close(Floats(saliency, all.end()), expected.saliency, tolerance, what + " saliency");
  }
}

DESAP_CASE(siglip_read_out_names_rows_that_are_not_finite) {
  const int64_t rows = 40, width = 64;
  const RandomBlock w({width, 2, Norm::layer, true, 80});
  const PackedPooling packed(machine.one(), w);
  Rows embeddings(rows, width);
  Floats global(static_cast<size_t>(width)), saliency(static_cast<size_t>(rows));
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    Floats x = Random(7).floats(rows * width);
    for (int64_t row : {23, 37}) x[static_cast<size_t>(row * width + 5)] = bad;
    const Status status = siglip_read_out(machine.one(), Rows(x, rows, width), packed.weights, embeddings, global.data(), saliency.data());
    check(is(status, Code::not_finite, "x", 23), std::to_string(bad));
  }
}

}  // namespace
}  // namespace desap::test
