/**
 * Visual saliency, eq. 4: A_s = mean over heads of softmax(rot(Q) rot(K)^T / sqrt(dh)). q, k: [N, D].
 * With a class token: its row (row 0), columns 1..N-1. Without: the mean over the rows, so the attention each key receives.
 */
import type { Rotary } from '../rotary-tables.js';
import { dot, type Matrix64, matrix64, type NumberMatrix, softmax } from './numeric.js';

export function saliency(
  q: NumberMatrix,
  k: NumberMatrix,
  heads: number,
  classToken: boolean,
  tables: Rotary | null = null,
): Float64Array {
  const { rows: n, cols: d } = k;
  const dh = d / heads;
  const queries = classToken ? 1 : n;
  const received = new Float64Array(n);
  const weights = new Float64Array(n);
  const [Q, K] = tables ? [rotated(q, heads, tables), rotated(k, heads, tables)] : [q, k];
  for (let h = 0; h < heads; h++)
    for (let i = 0; i < queries; i++) {
      for (let j = 0; j < n; j++) weights[j] = dot(Q.data, i * d + h * dh, K.data, j * d + h * dh, dh) / Math.sqrt(dh);
      softmax(weights);
      for (let j = 0; j < n; j++) received[j] += weights[j] / (heads * queries);
    }
  return classToken ? received.slice(1) : received;
}

/** rot(x) = x cos + turn(x) sin for the columns of each head; turn([a, b]) = [-b, a] by halves. cos, sin: [N, dh], dh even. */
export function rotated(x: NumberMatrix, heads: number, { cos, sin }: Rotary): Matrix64 {
  const dh = x.cols / heads;
  const half = dh / 2;
  const y = matrix64(x.rows, x.cols);
  for (let i = 0; i < x.rows; i++)
    for (let c = 0; c < x.cols; c++) {
      const within = c % dh;
      const turned = within < half ? -x.data[i * x.cols + c + half] : x.data[i * x.cols + c - half];
      y.data[i * x.cols + c] = x.data[i * x.cols + c] * cos[i * dh + within] + turned * sin[i * dh + within];
    }
  return y;
}
