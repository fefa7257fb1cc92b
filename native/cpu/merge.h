// Nearest-centre merge: argmax over the kept rows c of x_i . x_c / |x_c|, then the mean of each group.
//
// |x_i| > 0 does not change which centre is nearest, so only the centres are normalised. The similarities of a block of
// rows are made panel by panel, and each goes at once into a running best per lane; a lane sees its centres in ascending
// order and only a larger value wins, and of equal lanes the lower centre does: ties go to the first centre.
// A group is added up in ascending order of its rows, in float32.
#pragma once

namespace desap {
namespace DESAP_ISA {

constexpr int64_t merge_rows = 48;  // a multiple of every tile's rows

// The best centre of each lane, for one row.
struct Nearest {
  float similarity[lanes];
  int32_t centre[lanes];
};

DESAP_INLINE void compare(Nearest& nearest, const float* similarities, int64_t count, int64_t begin) {
  int32_t lane[lanes];
  for (int i = 0; i < lanes; i++) lane[i] = i;
  F best = load(nearest.similarity);
  I centre = load(nearest.centre);
  for (int64_t j = 0; j < count; j += lanes) {
    const F similarity = load_first(count - j, similarities + j, -__builtin_inff());
    const auto nearer = similarity > best;
    centre = nearer ? load(lane) + static_cast<int32_t>(begin + j) : centre;
    best = nearer ? similarity : best;
  }
  store(nearest.similarity, best);
  store(nearest.centre, centre);
}

DESAP_INLINE int32_t best_of(const Nearest& nearest) {
  int best = 0;
  for (int i = 1; i < lanes; i++) {
    const float difference = nearest.similarity[i] - nearest.similarity[best];
    if (difference > 0 || (difference == 0 && nearest.centre[i] < nearest.centre[best])) best = i;
  }
  return nearest.centre[best];
}

// norms: [P], the features' inverse norms (unit_rows.h); null: computed here.
Status merge(Context& context, ConstMatrix features, const float* norms, const int32_t* kept, int64_t k, Matrix tokens,
             int32_t* assignment, int32_t* counts) {
  const int64_t size = features.cols, blocks = blocks_of(features.rows, merge_rows), panels = blocks_of(k, panel_width);
  const int64_t centre_ld = padded_ld(size), thread_size = merge_rows * panel_width;
  static const float zeros[panel_width] = {};

  Scratch scratch(context.arena);
  float* own_norms = scratch.floats(norms ? 0 : features.rows);
  float* centres = scratch.floats(k * centre_ld);
  float* packed = scratch.floats(packed_size(size, k));
  float* similarities = scratch.floats(context.pool.threads() * thread_size);
  int32_t* begins = scratch.ints(k + 1);           // where each group starts in `members`
  int32_t* members = scratch.ints(features.rows);  // rows, by group, ascending
  if (scratch.failed()) return out_of_memory("merge");

  if (!norms) {
    inverse_norms(context, features, own_norms);  // what it reports is reported below
    norms = own_norms;
  }
  for (int64_t i = 0; i < features.rows; i++) {
    if (norms[i] == 0) return {Code::not_finite, "features", i};
  }

  context.pool.parallel_for(panels, [&](int64_t p, int) {
    for (int64_t c = p * panel_width; c < min((p + 1) * panel_width, k); c++) {
      const float* row = features.row(kept[c]);
      for (int64_t d = 0; d < size; d++) centres[c * centre_ld + d] = row[d] * norms[kept[c]];
    }
    pack_rows({centres, k, size, centre_ld}, p, packed);
  });

  context.pool.parallel_for(blocks, [&](int64_t block, int thread) {
    const int64_t i = block * merge_rows, rows = min(merge_rows, features.rows - i);
    float* similarity = similarities + thread * thread_size;
    Nearest nearest[merge_rows];
    for (int64_t r = 0; r < rows; r++) {
      for (int l = 0; l < lanes; l++) nearest[r].similarity[l] = -__builtin_inff(), nearest[r].centre[l] = 0;
    }
    for (int64_t c = 0; c < k; c += panel_width) {
      const int64_t columns = min(panel_width, k - c);
      multiply_panel({size, features.row(i), features.ld, 1, packed + c * size, zeros, 0, similarity, panel_width}, rows, columns);
      for (int64_t r = 0; r < rows; r++) compare(nearest[r], similarity + r * panel_width, columns, c);
    }
    for (int64_t r = 0; r < rows; r++) assignment[i + r] = best_of(nearest[r]);
  });
  for (int64_t c = 0; c < k; c++) assignment[kept[c]] = static_cast<int32_t>(c);

  for (int64_t c = 0; c < k; c++) counts[c] = 0;
  for (int64_t i = 0; i < features.rows; i++) counts[assignment[i]]++;
  begins[0] = 0;
  for (int64_t c = 0; c < k; c++) begins[c + 1] = begins[c] + counts[c];
  for (int64_t i = 0; i < features.rows; i++) members[begins[assignment[i]]++] = static_cast<int32_t>(i);
  // each begin has moved to its group's end

  context.pool.parallel_for(k, [&](int64_t c, int) {
    const int32_t* member = members + begins[c] - counts[c];
    float* token = tokens.row(c);
    std::memcpy(token, features.row(member[0]), static_cast<size_t>(size) * sizeof(float));
    for (int32_t n = 1; n < counts[c]; n++) {
      const float* row = features.row(member[n]);
      for (int64_t d = 0; d < size; d += lanes) {
        store_first(size - d, token + d, load_first(size - d, token + d) + load_first(size - d, row + d));
      }
    }
    for (int64_t d = 0; d < size; d += lanes) {
      store_first(size - d, token + d, load_first(size - d, token + d) / static_cast<float>(counts[c]));
    }
  });
  return {};
}

}  // namespace DESAP_ISA
}  // namespace desap
