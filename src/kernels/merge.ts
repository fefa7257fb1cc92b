/**
 * Nearest-centre merge: every row that is not kept joins the kept row of highest cosine similarity (equal: the one that
 * comes first), and each kept row becomes the plain mean of itself and the rows that joined it.
 * features: [P, D]; kept: [K] ascending; tokens: [K, D]; assignment: [P] position in kept; counts: [K].
 */
import { dot, type Matrix64, matrix64, type NumberMatrix, row } from './numeric.js';
import { unitRows } from './unit-rows.js';

export interface MergeResult {
  readonly tokens: Matrix64;
  readonly assignment: Int32Array;
  readonly counts: Int32Array;
}

export function merge(features: NumberMatrix, kept: Int32Array): MergeResult {
  const { rows: P, cols: d } = features;
  const unit = unitRows(features);
  const assignment = new Int32Array(P).fill(-1);
  for (let c = 0; c < kept.length; c++) assignment[kept[c]] = c;
  for (let i = 0; i < P; i++) {
    if (assignment[i] >= 0) continue;
    let best = Number.NEGATIVE_INFINITY;
    for (let c = 0; c < kept.length; c++) {
      const cosine = dot(unit.data, i * d, unit.data, kept[c] * d, d);
      if (cosine > best) {
        best = cosine;
        assignment[i] = c;
      }
    }
  }

  const tokens = matrix64(kept.length, d);
  const counts = new Int32Array(kept.length);
  for (let i = 0; i < P; i++) {
    const token = row(tokens, assignment[i]);
    for (let c = 0; c < d; c++) token[c] += features.data[i * d + c];
    counts[assignment[i]]++;
  }
  for (let k = 0; k < kept.length; k++) {
    const token = row(tokens, k);
    for (let c = 0; c < d; c++) token[c] /= counts[k];
  }
  return { tokens, assignment, counts };
}
