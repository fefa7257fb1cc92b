import type { LinearWeights } from '../head.js';
import type { OnnxModel } from './format/model.js';
import type { Projection } from './search/attention.js';
import type { Linear, Matrix, Vector } from './search/linear.js';
import { readMatrix, readVector } from './weights.js';

/** A layer whose weight and bias lie in the file, with its factors; zeros where it has no bias. */
export async function readLinear(model: OnnxModel, layer: Projection | Linear, width: number): Promise<LinearWeights> {
  const weight = await readMatrix(model, layer.weight as Matrix);
  const bias = layer.bias === null ? new Float32Array(width) : await readVector(model, layer.bias as Vector);
  return { weight: times(weight, layer.alpha), bias: times(bias, layer.beta) };
}

export function times(values: Float32Array, factor: number): Float32Array {
  return factor === 1 ? values : values.map((value) => value * factor);
}

/** How far a scale in the graph may lie from 1/sqrt(dh) for rounding (float16 constants). */
const SCALE_TOLERANCE = 1e-2;

/**
 * Takes a scale out of the weights that an export has folded into them. The graph then multiplies by more than 1/sqrt(dh),
 * and what is lacking is in q, or in equal parts in q and k. Products of queries and keys cannot tell these two apart;
 * the sizes of the weights can, as q and k are of one size in a trained model.
 *
 * @param excess what the graph multiplies products with, times sqrt(dh): 1 when nothing is folded
 */
export function unscaled(
  q: LinearWeights,
  k: LinearWeights,
  excess: number,
  headExtent: number,
): [LinearWeights, LinearWeights] {
  if (Math.abs(excess - 1) <= SCALE_TOLERANCE) return [q, k];
  const root = Math.sqrt(excess);
  const isWholeScale = Math.abs(excess / Math.sqrt(headExtent) - 1) <= SCALE_TOLERANCE;
  const inBoth = isWholeScale && length(q.weight) / length(k.weight) > 1 / root;
  const scaled = ({ weight, bias }: LinearWeights, factor: number) => ({
    weight: times(weight, factor),
    bias: times(bias, factor),
  });
  return inBoth ? [scaled(q, root), scaled(k, root)] : [scaled(q, excess), k];
}

function length(values: Float32Array): number {
  return Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
}
