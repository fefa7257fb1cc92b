/**
 * Decoupled attention, eq. 2: per head softmax(Q K^T / sqrt(dh)) V, heads concatenated. q, k, v, y: [N, D].
 * The class token takes part as query and key. One row of scores at a time: no N x N buffer.
 */
import { dot, type Matrix64, matrix64, type NumberMatrix, softmax } from './numeric.js';

export function attention(q: NumberMatrix, k: NumberMatrix, v: NumberMatrix, heads: number): Matrix64 {
  const { rows: n, cols: d } = q;
  const dh = d / heads;
  const y = matrix64(n, d);
  const weights = new Float64Array(n);
  for (let h = 0; h < heads; h++)
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) weights[j] = dot(q.data, i * d + h * dh, k.data, j * d + h * dh, dh) / Math.sqrt(dh);
      softmax(weights);
      for (let j = 0; j < n; j++)
        for (let c = h * dh; c < (h + 1) * dh; c++) y.data[i * d + c] += weights[j] * v.data[j * d + c];
    }
  return y;
}
