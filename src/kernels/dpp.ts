/**
 * Greedy MAP of a conditional determinantal point process (CDPruner): `count` rows of x, in the order of choice.
 *
 *   L_ij = (1 - blend + blend g_i g_j) cos_ij, g the relevance, cos_ii = 1 (0 for a row of length 1e-12 or less); d_i = L_ii
 *   the next row j has the largest d of those not chosen; e = (L_j - sum_s c_s[j] c_s) / sqrt(d_j), c_s = e, d_i -= e_i^2
 *
 * It stops where d_j <= 1e-5 max(first d), where the root would be one of rounding noise: the rest are the largest g^2 of the rows that
 * are left. Equal values: the lower index. x: [P, F]; relevance: [P]; blend: 0 to 1; picked: [count], count at most P.
 */
import { notFinite } from '../errors.js';
import { farthest } from './farthest-points.js';
import { dot, isRepresentable, type NumberMatrix, type Numbers } from './numeric.js';
import { unitRows } from './unit-rows.js';

/** Gains below this part of the first one are rounding noise. */
const LEAST_GAIN = 1e-5;

export function dpp(x: NumberMatrix, relevance: Numbers, blend: number, count: number): Int32Array {
  const { rows: P, cols } = x;
  const unit = unitRows(x);
  const squares = Float64Array.from(relevance, (g) => g * g);
  const bad = squares.findIndex((square) => !isRepresentable(square));
  if (bad >= 0) throw notFinite('relevance', bad);
  const similarity = (i: number, j: number) =>
    (1 - blend + blend * relevance[i] * relevance[j]) * dot(unit.data, i * cols, unit.data, j * cols, cols);

  const gains = squares.map((square, i) => (hasDirection(x, i) ? 1 - blend + blend * square : 0));
  const least = LEAST_GAIN * gains.reduce((most, gain) => Math.max(most, gain));
  const chosen = new Uint8Array(P);
  const factors: Float64Array[] = []; // c_s
  const picked = new Int32Array(count);
  for (let k = 0; k < count; k++) {
    let j = farthest(gains, chosen);
    if (gains[j] > least) {
      const root = Math.sqrt(gains[j]);
      const factor = new Float64Array(P);
      for (let i = 0; i < P; i++) {
        let rest = similarity(j, i);
        for (const c of factors) rest -= c[j] * c[i];
        factor[i] = rest / root;
        gains[i] -= factor[i] ** 2;
      }
      factors.push(factor);
    } else {
      j = farthest(squares, chosen);
    }
    chosen[j] = 1;
    picked[k] = j;
  }
  return picked;
}

function hasDirection(x: NumberMatrix, i: number): boolean {
  return dot(x.data, i * x.cols, x.data, i * x.cols, x.cols) > 1e-24;
}
