/**
 * Read-out, from the attention's context to A_d: attention = out(context), embeddings = unit rows of
 * visual_projection(post_norm(attention)). No residual, no feed-forward. context: [N, D], A_d: [N, E].
 */
import { layerNorm } from './layer-norm.js';
import { linear } from './linear.js';
import type { Matrix64, NumberMatrix, Numbers } from './numeric.js';
import { unitRows } from './unit-rows.js';

interface Layer {
  readonly weight: Numbers;
  readonly bias: Numbers;
}

export function readOut(
  context: NumberMatrix,
  out: Layer,
  postNorm: Layer,
  epsilon: number,
  visualProjection: NumberMatrix,
): { attention: Matrix64; embeddings: Matrix64 } {
  const attention = linear(context, { data: out.weight, rows: context.cols, cols: context.cols }, out.bias);
  const normalised = layerNorm(attention, postNorm.weight, postNorm.bias, epsilon);
  return { attention, embeddings: unitRows(linear(normalised, visualProjection, null)) };
}
