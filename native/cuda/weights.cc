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

// ------------------------------------------------------------------------------------------------------------- head

Status PackedHead::pack(Stream& stream, Precision precision, const HeadConfig& config, const HeadWeights& weights) {
  const int64_t width = config.width, size = width / config.heads, outputs = config.projection_dim;
  heads = config.heads;
  padded_size = padded_head_size(static_cast<int>(std::min<int64_t>(size, largest_head_size + 1)));
  if (padded_size < 0) return {Code::unsupported, "head size"};
  if (width > widest_row) return {Code::unsupported, "width beyond 16384"};
  if (outputs > widest_row) return {Code::unsupported, "projectionDim beyond 16384"};
  inner = heads * padded_size;
  squared = static_cast<int>(padded_width(width));

  // q, v, k in the order of Block. exponents[block][head]: the power of two by which the head's outputs are scaled.
  std::vector<int> exponents[3];
  {
    HostLayer rows(3 * inner, width);
    const float* const matrices[][2] = {
        {weights.q_weight, weights.q_bias}, {weights.v_weight, weights.v_bias}, {weights.k_weight, weights.k_bias}};
    for (int block = 0; block < 3; block++) {
      const FoldedLayer layer =
          fold_norm(matrices[block][0], matrices[block][1], weights.ln1_weight, weights.ln1_bias, width, width);
      for (int64_t h = 0; h < heads; h++) {
        double bound = 0;
        for (int64_t c = h * size; c < (h + 1) * size; c++) {
          double square = 0;
          for (int64_t j = 0; j < width; j++) square += std::pow(layer.weight[static_cast<size_t>(c * width + j)], 2);
          const double offset = std::fabs(layer.bias[static_cast<size_t>(c)]);
          bound = std::max(bound, std::sqrt(static_cast<double>(width) * square) + offset);
        }
        const int exponent = exponent_for(bound, 14, 60);
        exponents[block].push_back(exponent);
        for (int64_t c = 0; c < size; c++) {
          const int64_t from = h * size + c, to = block * inner + h * padded_size + c;
          rows.set(to, layer.weight.data() + from * width, layer.bias[static_cast<size_t>(from)], exponent);
        }
      }
    }
    DESAP_TRY(projection.pack(stream, precision, rows, true));
  }

  // The output projection reads the context with v's scale, which its columns undo.
  const float* out_bias = weights.out_bias;
  Doubles undo(static_cast<size_t>(width));
  for (int64_t c = 0; c < width; c++) {
    undo[static_cast<size_t>(c)] = std::ldexp(1.0, -exponents[v][static_cast<size_t>(c / size)]);
  }
  const auto set = [&](HostLayer& layer, int64_t row, const double* w, double bias) {
    Doubles scaled(w, w + width);
    for (int64_t c = 0; c < width; c++) scaled[static_cast<size_t>(c)] *= undo[static_cast<size_t>(c)];
    layer.set(row, scaled.data(), bias, 0);
  };
  const int head_count = static_cast<int>(heads);
  {
    HostLayer rows(width, width);
    for (int64_t i = 0; i < width; i++) {
      const Doubles row(weights.out_weight + i * width, weights.out_weight + (i + 1) * width);
      set(rows, i, row.data(), out_bias[i]);
    }
    DESAP_TRY(out.pack(stream, precision, rows, head_count, padded_size, true));
  }

  // M = W_vis diag(gamma) C; C W_o and M W_o, C b_o and M b_o; shift = W_vis beta.
  FoldedLayer visual =
      fold_norm(weights.visual_projection, nullptr, weights.post_norm_weight, weights.post_norm_bias, outputs, width);
  Doubles& projected = visual.weight;
  centre_rows({projected.data(), outputs, width, width});
  {
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
      set(rows, i, row.data(), out_bias[i] - mean_bias);
    }
    const Doubles both = product(projected, weights.out_weight, outputs, width, width);
    for (int64_t e = 0; e < outputs; e++) {
      double bias = 0;
      for (int64_t j = 0; j < width; j++) bias += projected[static_cast<size_t>(e * width + j)] * out_bias[j];
      set(rows, squared + e, both.data() + e * width, bias);
    }
    DESAP_TRY(read_out.pack(stream, precision, rows, head_count, padded_size, true));
  }

  // [9 pairs of blocks, heads], [heads], [E]
  std::vector<float> small;
  for (int a = 0; a < 3; a++) {
    for (int b = 0; b < 3; b++) {
      for (size_t h = 0; h < exponents[a].size(); h++) {
        const int exponent = -(exponents[a][h] + exponents[b][h]);
        small.push_back(static_cast<float>(std::ldexp(log2_e / std::sqrt(static_cast<double>(size)), exponent)));
      }
    }
  }
  for (int exponent : exponents[v]) small.push_back(static_cast<float>(std::ldexp(1.0, -exponent)));
  small.insert(small.end(), visual.bias.begin(), visual.bias.end());
  const size_t bytes = small.size() * sizeof(float);
  DESAP_TRY(stream.gpu->status(vectors.allocate(stream.gpu, static_cast<int64_t>(bytes)), "device memory"));
  stream.queue.note(cudaMemcpyAsync(vectors.data(), small.data(), bytes, cudaMemcpyHostToDevice, stream.queue.stream));
  return stream.finish();
}

}  // namespace desap::cuda
