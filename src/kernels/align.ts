/**
 * Fine-grained cross-modal alignment (FCMA), eq. 3. All rows are unit rows; P patches, T text tokens.
 *
 *   m = visual text^T    alpha = visual endOfText    beta = text global
 *   M_V[i,j] = alpha[i] exp(lambda beta[j] m[i,j]) / (P sum_k exp(lambda beta[k] m[i,k]))
 *   M_T[i,j] = beta[j] exp(lambda alpha[i] m[i,j]) / (T sum_k exp(lambda alpha[k] m[k,j]))
 *   A_t[i] = mean_j ((M_V + M_T) * m)[i,j]        with alignment 'mean': A_t[i] = mean_j m[i,j]
 *
 * visual: [P, E], text: [T, E], endOfText, global: [E]; A_t: [P]; matrices: [P, T].
 */
import type { Alignment } from './kernels.js';
import { linear } from './linear.js';
import { type NumberMatrix, type Numbers, softmax } from './numeric.js';

export interface AlignResult {
  readonly task: Float64Array;
  readonly similarity: Float64Array;
  readonly visualAlignment: Float64Array | null;
  readonly textAlignment: Float64Array | null;
}

export function align(
  visual: NumberMatrix,
  text: NumberMatrix,
  endOfText: Numbers,
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

  const alpha = linear(visual, { data: endOfText, rows: 1, cols: visual.cols }, null).data;
  const beta = linear(text, { data: global, rows: 1, cols: text.cols }, null).data;
  if (alignment === 'fcma-clamped') {
    for (let i = 0; i < P; i++) alpha[i] = Math.max(alpha[i], 0);
    for (let j = 0; j < T; j++) beta[j] = Math.max(beta[j], 0);
  }

  // Softmax over the text, a row at a time, and over the patches, a column at a time.
  const overText = Float64Array.from(m, (cosine, at) => lambda * beta[at % T] * cosine);
  for (let i = 0; i < P; i++) softmax(overText, i * T, T);
  const overPatches = new Float64Array(P * T);
  for (let j = 0; j < T; j++) {
    const column = Float64Array.from(alpha, (weight, i) => lambda * weight * m[i * T + j]);
    softmax(column);
    for (let i = 0; i < P; i++) overPatches[i * T + j] = column[i];
  }

  const visualAlignment = overText.map((share, at) => (alpha[Math.floor(at / T)] * share) / P);
  const textAlignment = overPatches.map((share, at) => (beta[at % T] * share) / T);
  for (let i = 0; i < P; i++)
    for (let j = 0; j < T; j++) task[i] += ((visualAlignment[i * T + j] + textAlignment[i * T + j]) * m[i * T + j]) / T;
  return { task, similarity: m, visualAlignment, textAlignment };
}
