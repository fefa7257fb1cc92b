import type { HeadWeights } from '../../head.js';
import { layerNorm } from '../../kernels/layer-norm.js';
import { linear } from '../../kernels/linear.js';
import { dot, type Matrix64, matrix64, type NumberMatrix, row, softmax } from '../../kernels/numeric.js';

/** A block's norm and attention. */
export type AttentionWeights = Pick<HeadWeights, 'width' | 'heads' | 'epsilon' | 'ln1' | 'q' | 'k' | 'v' | 'out'>;

/**
 * Some rows of a layer's attention (queries and keys) after its output projection, in float64: [rows, D].
 *
 * Keys and values are never made. With `k_j = Wk x_j + bk`, a score is `q . k_j = (Wk^T q) . x_j + q . bk`, and as the
 * weights of a row sum to 1, its context is `Wv (sum_j a_j x_j) + bv`. For a few rows this is a fraction of the work.
 *
 * @param hidden what enters the layer, [N, D]
 * @param rows which rows
 */
export function attentionRows(head: AttentionWeights, hidden: NumberMatrix, rows: readonly number[]): Matrix64 {
  const { width, heads, k, v } = head;
  const extent = width / heads;
  const x = layerNorm(hidden, head.ln1.weight, head.ln1.bias, head.epsilon);
  const picked = matrix64(rows.length, width);
  for (const [i, from] of rows.entries()) picked.data.set(row(x, from), i * width);
  const q = linear(picked, { data: head.q.weight, rows: width, cols: width }, head.q.bias);
  const context = matrix64(rows.length, width);
  const weights = new Float64Array(hidden.rows);
  for (let i = 0; i < rows.length; i++)
    for (let h = 0; h < width; h += extent) {
      const turned = new Float64Array(width);
      for (let c = h; c < h + extent; c++) addScaled(turned, q.data[i * width + c], k.weight, c * width);
      const offset = dot(q.data, i * width + h, k.bias, h, extent);
      for (let j = 0; j < hidden.rows; j++)
        weights[j] = (dot(turned, 0, x.data, j * width, width) + offset) / Math.sqrt(extent);
      softmax(weights);
      const mean = new Float64Array(width);
      for (let j = 0; j < hidden.rows; j++) addScaled(mean, weights[j], x.data, j * width);
      for (let c = h; c < h + extent; c++)
        context.data[i * width + c] = dot(v.weight, c * width, mean, 0, width) + v.bias[c];
    }
  return linear(context, { data: head.out.weight, rows: width, cols: width }, head.out.bias);
}

/** Post norm and visual projection of one row, [1, E]. */
export function readOutRow(head: HeadWeights, last: NumberMatrix): Matrix64 {
  const normed = layerNorm(last, head.postNorm.weight, head.postNorm.bias, head.epsilon);
  return linear(normed, { data: head.visualProjection, rows: head.projectionDim, cols: head.width }, null);
}

/** y += factor * x[from ...] */
function addScaled(y: Float64Array, factor: number, x: Float32Array | Float64Array, from: number): void {
  for (let c = 0; c < y.length; c++) y[c] += factor * x[from + c];
}
