/**
 * Farthest points: `count` rows of x, in the order of choice. The distance of two rows is 1 - their cosine; the next row is the one whose
 * smallest distance to all chosen so far, seeds included, is largest; a seed or a chosen row is never chosen again. Without seeds
 * the first is the row whose nearest other row is farthest (DivPrune). Equal distances: the lower index.
 * x: [P, F]; seeds: distinct rows, may be none; picked: [count], count + the number of seeds at most P.
 */
import { dot, type NumberMatrix, sumOfRows } from './numeric.js';
import { unitRows } from './unit-rows.js';

export function farthestPoints(x: NumberMatrix, seeds: Int32Array, count: number): Int32Array {
  const unit = unitRows(x);
  const distance = (i: number, j: number) => 1 - dot(unit.data, i * x.cols, unit.data, j * x.cols, x.cols);
  const nearest = new Float64Array(x.rows).fill(Number.POSITIVE_INFINITY);
  const chosen = new Uint8Array(x.rows);
  const choose = (j: number) => {
    chosen[j] = 1;
    for (let i = 0; i < x.rows; i++) nearest[i] = Math.min(nearest[i], distance(i, j));
  };

  const picked = new Int32Array(count);
  for (const seed of seeds) choose(seed);
  for (let k = 0; k < count; k++) {
    const first = k === 0 && seeds.length === 0;
    picked[k] = farthest(first ? toNearestOther(x.rows, distance) : nearest, chosen);
    choose(picked[k]);
  }
  return picked;
}

/**
 * The row whose distances to all others have the largest sum, with which the diversity of a pruning begins where nothing is chosen
 * before: sum_j (1 - cos_ij) = P - u_i . sum_j u_j. Equal sums: the lower index.
 */
export function mostDistant(x: NumberMatrix): number {
  const unit = unitRows(x);
  const sums = sumOfRows(unit);
  const apart = Float64Array.from({ length: x.rows }, (_, i) => -dot(unit.data, i * x.cols, sums, 0, x.cols));
  return farthest(apart, new Uint8Array(x.rows));
}

/** The smallest distance of each row to any other row. */
function toNearestOther(rows: number, distance: (i: number, j: number) => number): Float64Array {
  const nearest = new Float64Array(rows).fill(Number.POSITIVE_INFINITY);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < rows; j++) if (i !== j) nearest[i] = Math.min(nearest[i], distance(i, j));
  return nearest;
}

/** The row of the largest score that is not excluded; equal scores: the lowest. */
export function farthest(scores: Float64Array, excluded: Uint8Array): number {
  let best = -1;
  for (let i = 0; i < scores.length; i++) if (!excluded[i] && (best < 0 || scores[i] > scores[best])) best = i;
  return best;
}
