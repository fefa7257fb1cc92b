/**
 * An encoder's own attention, and the saliency of its weights: per head y = softmax(rot(Q) rot(K)^T / sqrt(dh)) V, heads concatenated, and
 * the mean of the same softmax over heads and rows. q, k, v, y: [N, D]; saliency: [N].
 */
import type { Rotary } from '../rotary-tables.js';
import { attention } from './attention.js';
import type { Matrix64, NumberMatrix } from './numeric.js';
import { rotated, saliency } from './saliency.js';

export function selfAttention(
  q: NumberMatrix,
  k: NumberMatrix,
  v: NumberMatrix,
  heads: number,
  tables: Rotary | null,
): { context: Matrix64; saliency: Float64Array } {
  const [Q, K] = tables ? [rotated(q, heads, tables), rotated(k, heads, tables)] : [q, k];
  return { context: attention(Q, K, v, heads), saliency: saliency(Q, K, heads, false) };
}
