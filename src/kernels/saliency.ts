/**
 * Visual saliency, eq. 4: A_s = mean over heads of softmax(Q K^T / sqrt(dh)). q, k: [N, D].
 * With a class token: its row (row 0), columns 1..N-1. Without: the mean over the rows, so the attention each key receives.
 */
import { dot, type NumberMatrix, softmax } from './numeric.js';

export function saliency(q: NumberMatrix, k: NumberMatrix, heads: number, classToken: boolean): Float64Array {
  const { rows: n, cols: d } = k;
  const dh = d / heads;
  const queries = classToken ? 1 : n;
  const received = new Float64Array(n);
  const weights = new Float64Array(n);
  for (let h = 0; h < heads; h++)
    for (let i = 0; i < queries; i++) {
      for (let j = 0; j < n; j++) weights[j] = dot(q.data, i * d + h * dh, k.data, j * d + h * dh, dh) / Math.sqrt(dh);
      softmax(weights);
      for (let j = 0; j < n; j++) received[j] += weights[j] / (heads * queries);
    }
  return classToken ? received.slice(1) : received;
}
