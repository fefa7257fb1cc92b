// read_out against float64. What the head runs in its place: fold_test.cc, head_test.cc, cuda/read_out_check.cc.
#include "kernel_test.h"
#include "random_head.h"

namespace desap::test {
namespace {

// The weights of a read-out, packed where it runs.
struct PackedReadOut {
  PackedReadOut(Context& context, const RandomWeights& w) {
    const int64_t width = w.config.width, outputs = w.config.projection_dim;
    check(linear_pack(context, {w.out.data(), width, width, width}, w.out_bias.data(), &out).good(), "pack");
    check(linear_pack(context, {w.projection.data(), outputs, width, width}, nullptr, &projection).good(), "pack");
    weights = {out, w.post_weight.data(), w.post_bias.data(), w.config.epsilon, projection};
  }
  ~PackedReadOut() {
    linear_free(out);
    linear_free(projection);
  }
  PackedReadOut(const PackedReadOut&) = delete;

  Linear *out = nullptr, *projection = nullptr;
  ReadOut weights{};
};

RandomWeights random_weights(int64_t width, int64_t projection_dim) {
  return RandomWeights({1, width, 1, projection_dim, true, 1, 1}, static_cast<uint64_t>(width * 1000 + projection_dim));
}

DESAP_CASE(read_out_shapes) {
  const int64_t shapes[][3] = {{1, 16, 1}, {2, 20, 33}, {17, 64, 80}, {33, 80, 17}, {65, 257, 96}, {145, 96, 64}};
  for (const auto& [rows, width, outputs] : shapes) {
    const std::string what = shape({rows, width, outputs});
    const RandomWeights w = random_weights(width, outputs);
    const Floats context_rows = Random(static_cast<uint64_t>(rows)).floats(rows * width);
    const Floats y = machine.same<float>(what, [&, rows = rows, width = width, outputs = outputs](Context& context) {
      const PackedReadOut packed(context, w);
      Rows attention(rows, width, 2), embeddings(rows, outputs, 3);
      check(read_out(context, Rows(context_rows, rows, width, 1), packed.weights, attention, embeddings).good(), "status");
      return concatenate({attention.dense(), embeddings.dense()});
    });
    const Array bias(w.out_bias, 1, width), gamma(w.post_weight, 1, width), beta(w.post_bias, 1, width);
    const Array attention = reference::linear({context_rows, rows, width}, {w.out, width, width}, &bias);
    const Array normal = reference::layer_norm(attention, gamma, beta, w.config.epsilon);
    const Array embeddings = reference::unit_rows(reference::linear(normal, {w.projection, outputs, width}, nullptr));
    const auto middle = y.begin() + rows * width;
    check_close(Floats(y.begin(), middle), attention.data, machine.tolerance(3e-6), what + " attention", 1);
    check_close(Floats(middle, y.end()), embeddings.data, machine.tolerance(5e-6), what + " embeddings");
  }
}

DESAP_CASE(read_out_rows_do_not_depend_on_each_other) {
  const int64_t rows = 50, width = 70, outputs = 40;
  const RandomWeights w = random_weights(width, outputs);
  const PackedReadOut packed(machine.one(), w);
  const Floats x = Random(9).floats(rows * width);
  Rows attention(rows, width), embeddings(rows, outputs);
  check(read_out(machine.one(), Rows(x, rows, width), packed.weights, attention, embeddings).good(), "status");
  bool equal = true;
  for (int64_t i = 0; i < rows; i += 7) {
    Rows attention_alone(1, width), embedding_alone(1, outputs);
    read_out(machine.one(), {x.data() + i * width, 1, width, width}, packed.weights, attention_alone, embedding_alone);
    equal = equal && std::memcmp(attention_alone.data.data(), attention.data.data() + i * width, width * sizeof(float)) == 0 &&
            std::memcmp(embedding_alone.data.data(), embeddings.data.data() + i * outputs, outputs * sizeof(float)) == 0;
  }
  check(equal, "a row alone gives the same bits as among others");
}

DESAP_CASE(read_out_names_rows_that_are_not_finite) {
  const int64_t rows = 40, width = 64, outputs = 20;
  const RandomWeights w = random_weights(width, outputs);
  const PackedReadOut packed(machine.one(), w);
  for (float bad : {NAN, infinity, -infinity}) {
    Floats x = Random(7).floats(rows * width);
    for (int64_t row : {23, 37}) x[static_cast<size_t>(row * width + 5)] = bad;
    Rows attention(rows, width), embeddings(rows, outputs);
    const Status status = read_out(machine.one(), Rows(x, rows, width), packed.weights, attention, embeddings);
    check(is(status, Code::not_finite, "x", 23), std::to_string(bad));
  }
}

}  // namespace
}  // namespace desap::test
