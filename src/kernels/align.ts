/**
 * Fine-grained cross-modal alignment (FCMA), eq. 3. All rows are unit rows; P patches, T text tokens.
 *
 *   m = visual text^T    alpha = visual query    beta = text global
 *   M_V[i,j] = alpha[i] exp(lambda beta[j] m[i,j]) / (P sum_k exp(lambda beta[k] m[i,k]))
 *   M_T[i,j] = beta[j] exp(lambda alpha[i] m[i,j]) / (T sum_k exp(lambda alpha[k] m[k,j]))
 *   A_t[i] = mean_j ((M_V + M_T) * m)[i,j]        with alignment 'mean': A_t[i] = mean_j m[i,j]
 *
 * visual: [P, E], text: [T, E], query, global: [E]; A_t: [P]; matrices: [P, T].
 */
import type { Alignment } from './kernels.js';
import { linear } from './linear.js';
import type { NumberMatrix, Numbers } from './numeric.js';

export interface AlignResult {
  readonly task: Float64Array;
  readonly similarity: Float64Array;
  readonly visualAlignment: Float64Array | null;
  readonly textAlignment: Float64Array | null;
}

export function align(
  visual: NumberMatrix,
  text: NumberMatrix,
  query: Numbers,
  global: Numbers,
  alignment: Alignment,
  lambda: number,
): AlignResult {
  const [P, T] = [visual.rows, text.rows];
  const m = linear(visual, text, null).data;
  const task = new Float64Array(P);
  if (alignment === 'mean') {
    for (let i = 0; i < P; i++) for (let j = 0; j < T; j++) task[i] += m[i * T + j] / T;
    return { task, similarity: m, visualAlignment: null, textAlignment: null };
  }

  const alpha = linear(visual, { data: query, rows: 1, cols: visual.cols }, null).data;
  const beta = linear(text, { data: global, rows: 1, cols: text.cols }, null).data;
  if (alignment === 'fcma-clamped') {
    for (let i = 0; i < P; i++) alpha[i] = Math.max(alpha[i], 0);
    for (let j = 0; j < T; j++) beta[j] = Math.max(beta[j], 0);
  }

  const toText = Float64Array.from(m, (cosine, at) => Math.exp(lambda * beta[at % T] * cosine));
  const toVisual = Float64Array.from(m, (cosine, at) => Math.exp(lambda * alpha[Math.floor(at / T)] * cosine));
  const rowSum = new Float64Array(P);
  const columnSum = new Float64Array(T);
  for (let i = 0; i < P; i++)
    for (let j = 0; j < T; j++) {
      rowSum[i] += toText[i * T + j];
      columnSum[j] += toVisual[i * T + j];
    }

  const visualAlignment = toText.map(
    (weight, at) => (alpha[Math.floor(at / T)] * weight) / (P * rowSum[Math.floor(at / T)]),
  );
  const textAlignment = toVisual.map((weight, at) => (beta[at % T] * weight) / (T * columnSum[at % T]));
  for (let i = 0; i < P; i++)
    for (let j = 0; j < T; j++) task[i] += ((visualAlignment[i * T + j] + textAlignment[i * T + j]) * m[i * T + j]) / T;
  return { task, similarity: m, visualAlignment, textAlignment };
}
