#include "weights.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "../fold.h"
#include "../in_parallel.h"

namespace desap::cuda {
namespace {

using Doubles = std::vector<double>;

constexpr double log2_e = 1.4426950408889634;

// The e in [-limit, limit] for which 2^(top - 1) <= x 2^e < 2^top; 0 for 0 and what is not finite.
int exponent_for(double x, int top, int limit) {
  if (!(x > 0) || std::isinf(x)) return 0;
  int exponent;
  std::frexp(x, &exponent);
  return std::clamp(top - exponent, -limit, limit);
}

// y [m, n] = a [m, k] b [k, n] in float64. Four rows at a time, so that each row of b is read and widened once for all four;
// the accumulators of one block stay in the first-level cache.
Doubles product(const Doubles& a, const float* b, int64_t m, int64_t k, int64_t n) {
  constexpr int64_t group = 4, block = 256;
  Doubles y(static_cast<size_t>(m * n));
  const unsigned threads = static_cast<double>(m) * static_cast<double>(k * n) < 1e7 ? 1 : std::thread::hardware_concurrency();
  in_parallel((m + group - 1) / group, std::min(16u, threads), [&](int64_t task) {
    const int64_t begin = task * group, rows = std::min(group, m - begin);
    for (int64_t column = 0; column < n; column += block) {
      const int64_t width = std::min(block, n - column);
      double sums[group][block] = {};
      for (int64_t j = 0; j < k; j++) {
        const float* source = b + j * n + column;
        double w[group];
        for (int64_t r = 0; r < group; r++) w[r] = r < rows ? a[static_cast<size_t>((begin + r) * k + j)] : 0;
        for (int64_t c = 0; c < width; c++) {
          const double value = static_cast<double>(source[c]);
          for (int64_t r = 0; r < group; r++) sums[r][c] += w[r] * value;
        }
      }
      for (int64_t r = 0; r < rows; r++) std::copy_n(sums[r], width, y.data() + (begin + r) * n + column);
    }
  });
  return y;
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------ layer

HostLayer::HostLayer(int64_t rows_, int64_t columns_)
    : rows(rows_), columns(columns_), weight(static_cast<size_t>(rows * columns)), scale(static_cast<size_t>(rows), 1.0f),
      bias(static_cast<size_t>(rows)) {}

void HostLayer::set(int64_t row, const double* w, double bias_, int exponent) {
  double largest = 0;
  for (int64_t j = 0; j < columns; j++) largest = std::max(largest, std::fabs(w[j]));
  const int own = exponent_for(largest, 12, 126);
  const double factor = std::ldexp(1.0, own);
  float* to = weight.data() + row * columns;
  for (int64_t j = 0; j < columns; j++) to[j] = static_cast<float>(w[j] * factor);
  scale[static_cast<size_t>(row)] = static_cast<float>(std::ldexp(1.0, exponent - own));
  bias[static_cast<size_t>(row)] = static_cast<float>(std::ldexp(bias_, exponent));
}

Status PackedLayer::pack(Stream& stream, Precision precision, const HostLayer& layer, bool with_bias) {
  const int ld = static_cast<int>(padded_width(layer.columns));
  return pack(stream, precision, layer, 1, ld, with_bias);
}

Status PackedLayer::pack(Stream& stream, Precision precision, const HostLayer& layer, int heads, int padded_size,
                         bool with_bias) {
  const int64_t ld = padded_width(int64_t{heads} * padded_size), plane = layer.rows * ld * 2;
  const int64_t vector = padded_width(layer.rows) * 4, planes = precision == Precision::fp32 ? 2 : 1;
  DESAP_TRY(stream.gpu->status(memory_.allocate(stream.gpu, planes * plane + 2 * vector), "device memory"));
  DESAP_TRY(stream.reserve(layer.rows * layer.columns * 4, 0, 0));
  char* base = memory_.data();
  uint16_t* hi = reinterpret_cast<uint16_t*>(base);
  const Operand operand{hi, planes == 2 ? hi + layer.rows * ld : nullptr, ld};
  float* scale = reinterpret_cast<float*>(base + planes * plane);
  float* bias = scale + vector / 4;
  float* plain = reinterpret_cast<float*>(stream.device());
  Queue& queue = stream.queue;
  const auto upload = [&](float* to, const std::vector<float>& from) {
    queue.note(cudaMemcpyAsync(to, from.data(), from.size() * sizeof(float), cudaMemcpyHostToDevice, queue.stream));
  };
  upload(plain, layer.weight);
  upload(scale, layer.scale);
  upload(bias, layer.bias);
  queue.follows_kernel = false;
  to_operand(queue, precision, {plain, layer.rows, layer.columns, layer.columns}, heads, padded_size, nullptr, operand);
  all_ = {operand, scale, with_bias ? bias : nullptr, static_cast<int>(layer.rows), static_cast<int>(ld)};
  return stream.finish();
}

Weights PackedLayer::rows(int64_t begin, int64_t count) const {
  const ConstOperand& weight = all_.weight;
  const int64_t skipped = begin * weight.ld;
  return {{weight.hi + skipped, weight.lo ? weight.lo + skipped : nullptr, weight.ld},
          all_.scale + begin,
          all_.bias ? all_.bias + begin : nullptr,
          static_cast<int>(count),
          all_.in};
}

Status send(Stream& stream, const std::vector<float>& values, DeviceBuffer* to) {
  const size_t bytes = values.size() * sizeof(float);
  DESAP_TRY(stream.gpu->status(to->allocate(stream.gpu, static_cast<int64_t>(bytes)), "device memory"));
  stream.queue.note(cudaMemcpyAsync(to->data(), values.data(), bytes, cudaMemcpyHostToDevice, stream.queue.stream));
  return stream.finish();
}

// -------------------------------------------------------------------------------------------------------- attention

namespace {

// The output projection, centred or not, reads the context with v's scale, which its columns undo.
void set_undone(HostLayer& layer, int64_t row, const double* w, double bias, const Doubles& undo) {
  Doubles scaled(undo);
  for (size_t c = 0; c < scaled.size(); c++) scaled[c] *= w[c];
  layer.set(row, scaled.data(), bias, 0);
}

}  // namespace

Status PackedAttention::pack(Stream& stream, Precision precision, int64_t width, int64_t heads, const AttentionWeights& weights) {
  heads_ = heads;
  size_ = width / heads;
  padded_size = padded_head_size(static_cast<int>(std::min<int64_t>(size_, largest_head_size + 1)));
  if (padded_size < 0) return {Code::unsupported, "head size"};
  if (width > widest_row) return {Code::unsupported, "width beyond 16384"};
  inner = heads * padded_size;

  // q, v, k in the order of Block.
  {
    HostLayer rows(3 * inner, width);
    const float* const matrices[][2] = {
        {weights.q_weight, weights.q_bias}, {weights.v_weight, weights.v_bias}, {weights.k_weight, weights.k_bias}};
    for (int block = 0; block < 3; block++) {
      const FoldedLayer layer =
          fold_norm(matrices[block][0], matrices[block][1], weights.norm_weight, weights.norm_bias, width, width);
      for (int64_t h = 0; h < heads; h++) {
        double bound = 0;
        for (int64_t c = h * size_; c < (h + 1) * size_; c++) {
          double square = 0;
          for (int64_t j = 0; j < width; j++) square += std::pow(layer.weight[static_cast<size_t>(c * width + j)], 2);
          const double offset = std::fabs(layer.bias[static_cast<size_t>(c)]);
          bound = std::max(bound, std::sqrt(static_cast<double>(width) * square) + offset);
        }
        const int exponent = exponent_for(bound, 14, 60);
        exponents_[block].push_back(exponent);
        for (int64_t c = 0; c < size_; c++) {
          const int64_t from = h * size_ + c, to = block * inner + h * padded_size + c;
          rows.set(to, layer.weight.data() + from * width, layer.bias[static_cast<size_t>(from)], exponent);
        }
      }
    }
    DESAP_TRY(projection.pack(stream, precision, rows, true));
  }

  for (int64_t c = 0; c < width; c++) undo.push_back(std::ldexp(1.0, -exponents_[v][static_cast<size_t>(c / size_)]));
  {
    HostLayer rows(width, width);
    for (int64_t i = 0; i < width; i++) {
      const Doubles row(weights.out_weight + i * width, weights.out_weight + (i + 1) * width);
      set_undone(rows, i, row.data(), weights.out_bias ? weights.out_bias[i] : 0, undo);
    }
    DESAP_TRY(out.pack(stream, precision, rows, static_cast<int>(heads), padded_size, true));
  }

  // [9 pairs of blocks, heads], [heads]
  std::vector<float> small;
  for (const Block a : {q, v, k}) {
    for (const Block b : {q, v, k}) {
      const std::vector<float> scale = score_scales(a, b, 0);
      small.insert(small.end(), scale.begin(), scale.end());
    }
  }
  for (int exponent : exponents_[v]) small.push_back(static_cast<float>(std::ldexp(1.0, -exponent)));
  return send(stream, small, &scales_);
}

std::vector<float> PackedAttention::score_scales(Block a, Block b, int exponent) const {
  std::vector<float> scale;
  for (size_t h = 0; h < static_cast<size_t>(heads_); h++) {
    const double natural = log2_e / std::sqrt(static_cast<double>(size_));
    scale.push_back(static_cast<float>(std::ldexp(natural, exponent - exponents_[a][h] - exponents_[b][h])));
  }
  return scale;
}

// ------------------------------------------------------------------------------------------------------------- head

Status PackedHead::pack(Stream& stream, Precision precision, const HeadConfig& config, const HeadWeights& weights) {
  const int64_t width = config.width, outputs = config.projection_dim;
  if (outputs > widest_row) return {Code::unsupported, "projectionDim beyond 16384"};
  const float* out_bias = weights.out_bias;
  DESAP_TRY(PackedAttention::pack(stream, precision, width, config.heads,
                                  {weights.ln1_weight, weights.ln1_bias, weights.q_weight, weights.q_bias, weights.k_weight,
                                   weights.k_bias, weights.v_weight, weights.v_bias, weights.out_weight, out_bias}));
  squared = static_cast<int>(padded_width(width));

  // M = W_vis diag(gamma) C; C W_o and M W_o, C b_o and M b_o; shift = W_vis beta.
  FoldedLayer visual =
      fold_norm(weights.visual_projection, nullptr, weights.post_norm_weight, weights.post_norm_bias, outputs, width);
  Doubles& projected = visual.weight;
  centre_rows({projected.data(), outputs, width, width});
  HostLayer rows(squared + outputs, width);
  Doubles mean(static_cast<size_t>(width)), row(static_cast<size_t>(width));
  double mean_bias = 0;
  for (int64_t i = 0; i < width; i++) {
    const float* from = weights.out_weight + i * width;
    mean_bias += static_cast<double>(out_bias[i]) / static_cast<double>(width);
    for (int64_t c = 0; c < width; c++) mean[static_cast<size_t>(c)] += from[c] / static_cast<double>(width);
  }
  for (int64_t i = 0; i < width; i++) {
    const float* from = weights.out_weight + i * width;
    for (int64_t c = 0; c < width; c++) row[static_cast<size_t>(c)] = from[c] - mean[static_cast<size_t>(c)];
    set_undone(rows, i, row.data(), out_bias[i] - mean_bias, undo);
  }
  const Doubles both = product(projected, weights.out_weight, outputs, width, width);
  for (int64_t e = 0; e < outputs; e++) {
    double bias = 0;
    for (int64_t j = 0; j < width; j++) bias += projected[static_cast<size_t>(e * width + j)] * out_bias[j];
    set_undone(rows, squared + e, both.data() + e * width, bias, undo);
  }
  DESAP_TRY(read_out.pack(stream, precision, rows, static_cast<int>(config.heads), padded_size, true));
  return send(stream, std::vector<float>(visual.bias.begin(), visual.bias.end()), &shift_);
}

}  // namespace desap::cuda
