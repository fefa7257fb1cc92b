// Fine-grained cross-modal alignment. With z_ij = lambda beta_j m_ij and w_ij = lambda alpha_i m_ij:
//
//   M_V[i,j] = alpha_i / P  softmax_j(z)_ij        each patch spreads over the text
//   M_T[i,j] = beta_j / T   softmax_i(w)_ij        each text token spreads over the patches
//   task_i   = 1/T sum_j (M_V + M_T)_ij m_ij
//
// alpha is a column of the same product: the end-of-text row is one more row of the text. Vectors run along the text, padded to whole
// vectors; blocks of patches are the unit of work. The softmax over patches
// needs all of them, hence three passes over m: largest w per column, sum of weights per column, then everything else.
// Columns are reduced per block of align_rows patches and then over the blocks in order.
// Exponents are of 2 (z and w times log2 e).
// Numerics: both softmaxes subtract their largest exponent, so any lambda is safe; float32 throughout.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int64_t align_rows = 48;  // a multiple of every tile's rows

Status align(Context& context, ConstMatrix visual, ConstMatrix text, const float* end_of_text, const float* global,
             Alignment alignment, float lambda, float* task, AlignmentMatrices matrices) {
  const int64_t patches = visual.rows, text_tokens = text.rows, size = visual.cols;
  const int64_t ld = round_up(text_tokens + 1, lanes), blocks = blocks_of(patches, align_rows);
  const float infinity = __builtin_inff(), scale = lambda * log2_e;

  Scratch scratch(context.arena);
  const Matrix columns{scratch.floats((text_tokens + 1) * size), text_tokens + 1, size, size};  // the text, and its end-of-text row
  float* packed = scratch.floats(packed_size(size, text_tokens + 1));
  float* m = scratch.floats(patches * ld);
  float* zeros = scratch.floats(ld);
  float* alpha = scratch.floats(patches);
  float* beta = scratch.floats(ld);
  float* column = scratch.floats(ld);              // largest w of a text token, later the factor of its weights
  float* block_column = scratch.floats(blocks * ld);  // one block's largest w, later its sum of weights
  float* highest = scratch.floats(ld);
  if (scratch.failed()) return out_of_memory("align");

  for (int64_t j = 0; j <= text_tokens; j++) {
    std::memcpy(columns.row(j), j < text_tokens ? text.row(j) : end_of_text, static_cast<size_t>(size) * sizeof(float));
  }
  for (int64_t p = 0; p < blocks_of(text_tokens + 1, panel_width); p++) pack_rows(columns, p, packed);
  std::memset(zeros, 0, static_cast<size_t>(ld) * sizeof(float));
  const auto clamp = [&](float x) { return alignment == Alignment::fcma_clamped && x < 0 ? 0 : x; };
  for (int64_t j = 0; j < ld; j++) beta[j] = j < text_tokens ? clamp(dot(text.row(j), global, size)) : 0;
  const auto for_blocks = [&](const auto& body) {  // body(block, first row, one past the last)
    context.pool.parallel_for(blocks, [&](int64_t b, int) {
      body(b, b * align_rows, min((b + 1) * align_rows, patches));
    });
  };

  // m, alpha, and per block the largest w of each column
  for_blocks([&](int64_t b, int64_t begin, int64_t end) {
    for (int64_t j = 0; j < ld; j += panel_width) {
      float* c = m + begin * ld + j;
      multiply_panel({size, visual.row(begin), visual.ld, 1, packed + j * size, zeros, 0, c, ld}, end - begin, min(panel_width, ld - j));
    }
    for (int64_t i = begin; i < end; i++) alpha[i] = clamp(m[i * ld + text_tokens]);
    for (int64_t j = 0; j < ld; j += lanes) {
      F top = broadcast(-infinity);
      for (int64_t i = begin; i < end; i++) top = max(top, load(m + i * ld + j) * (scale * alpha[i]));
      store(block_column + b * ld + j, top);
    }
  });
  if (matrices.similarity) {
    for (int64_t i = 0; i < patches; i++) {
      std::memcpy(matrices.similarity + i * text_tokens, m + i * ld, static_cast<size_t>(text_tokens) * sizeof(float));
    }
  }

  if (alignment == Alignment::mean) {
    for (int64_t i = 0; i < patches; i++) {
      task[i] = row_sum(m + i * ld, text_tokens, [&](F v) { return v; }) / static_cast<float>(text_tokens);
    }
    return {};
  }

  for (int64_t j = 0; j < ld; j += lanes) {
    F top = broadcast(-infinity);
    for (int64_t b = 0; b < blocks; b++) top = max(top, load(block_column + b * ld + j));
    store(highest + j, top);
  }

  // per block the sum of each column's weights
  for_blocks([&](int64_t b, int64_t begin, int64_t end) {
    for (int64_t j = 0; j < ld; j += lanes) {
      F total{};
      for (int64_t i = begin; i < end; i++) total += exp2(load(m + i * ld + j) * (scale * alpha[i]) - load(highest + j));
      store(block_column + b * ld + j, total);
    }
  });
  for (int64_t j = 0; j < ld; j += lanes) {
    F total{};
    for (int64_t b = 0; b < blocks; b++) total += load(block_column + b * ld + j);
    store(column + j, load(beta + j) / (total * static_cast<float>(text_tokens)));
  }

  for_blocks([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float* row = m + i * ld;
      float* visual_row = matrices.visual_alignment ? matrices.visual_alignment + i * text_tokens : nullptr;
      float* text_row = matrices.text_alignment ? matrices.text_alignment + i * text_tokens : nullptr;
      const auto z = [&](int64_t j) { return first(text_tokens - j, load(row + j) * load(beta + j) * scale, -infinity); };
      F top = broadcast(-infinity);
      for (int64_t j = 0; j < ld; j += lanes) top = max(top, z(j));
      const float shift = largest(top);
      F weights{}, by_visual{}, by_text{};
      for (int64_t j = 0; j < ld; j += lanes) {
        const F similarity = load(row + j);
        const F visual_weight = exp2(z(j) - shift);
        const F text_weight = exp2(similarity * (scale * alpha[i]) - load(highest + j)) * load(column + j);
        weights += visual_weight;
        by_visual += visual_weight * similarity;
        by_text += text_weight * similarity;
        if (visual_row) store_first(text_tokens - j, visual_row + j, visual_weight);
        if (text_row) store_first(text_tokens - j, text_row + j, text_weight);
      }
      const float factor = alpha[i] / (static_cast<float>(patches) * sum(weights));
      task[i] = (factor * sum(by_visual) + sum(by_text)) / static_cast<float>(text_tokens);
      if (!visual_row) continue;
      for (int64_t j = 0; j < text_tokens; j += lanes) {
        store_first(text_tokens - j, visual_row + j, load_first(text_tokens - j, visual_row + j) * factor);
      }
    }
  });
  return {};
}

}  // namespace DESAP_ISA
}  // namespace desap
