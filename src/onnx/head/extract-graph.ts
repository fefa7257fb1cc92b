import { DesapError, invalid } from '../../errors.js';
import { checkHead, type HeadWeights, type LinearWeights } from '../../head.js';
import type { ModelSource, OnnxModel } from '../format/model.js';
import type { Projection } from '../search/attention.js';
import type { Linear, Matrix, Vector } from '../search/linear.js';
import { inputs, outputs } from '../search/linear.js';
import type { Norm } from '../search/norm.js';
import { readOutOf, readTower } from '../tower.js';
import { readFloats, readMatrix, readVector } from '../weights.js';

/**
 * The head of a CLIP `vision_model.onnx`: last attention, its norm, post norm and visual projection, found by structure.
 *
 * @param heads H, for a graph that does not say it
 * @throws DesapError `ERR_GRAPH` when a part is missing or quantised
 */
export async function headFromGraph(source: ModelSource, heads?: number): Promise<HeadWeights> {
  const tower = readTower(source, 'visionModel');
  const { graph, blocks, width, classToken } = tower;
  const { model } = graph;
  const last = blocks[blocks.length - 1];
  const missing = (what: string) => new DesapError('ERR_GRAPH', `${model.name}: ${what}`);
  const readOut = readOutOf(tower);
  const { norm, q, k, v, out } = last;
  const layers: [string, Projection | Linear][] = [
    ...Object.entries({ q, k, v, out }),
    ['visual projection', readOut.projection],
  ];
  for (const [name, layer] of layers)
    if (layer.weight === null)
      throw missing(
        `the weight of ${name} (${layer.op}) is ${layer.quantized ? 'quantised' : 'computed at run time'}; ` +
          'take the head from a float32 or float16 export, or from a safetensors file',
      );
  if (heads !== undefined && last.heads !== null && heads !== last.heads)
    throw invalid('ERR_VALUE', 'heads', heads, `${last.heads}, which the shapes in ${model.name} say`);
  const count = last.heads ?? heads ?? null;
  if (count === null)
    throw missing(
      'looked for the head count in the shapes around the last attention; found none. Pass the option heads',
    );
  const headExtent = width / count;
  const scale = last.scale(headExtent);
  if (scale === null) throw missing('looked for the scale of the last attention; found one that is no constant');
  for (const [name, { weight }] of layers)
    expectWidth(model, name, weight as Matrix, width, name === 'visual projection' ? null : width);

  const read = {
    q: await readLinear(model, q, width),
    k: await readLinear(model, k, width),
    v: await readLinear(model, v, width),
    out: await readLinear(model, out, width),
  };
  const { weight: visualProjection, bias } = await readLinear(
    model,
    readOut.projection,
    outputs(readOut.projection.weight as Matrix),
  );
  if (bias.some((value) => value !== 0)) throw missing('the visual projection has a bias, wanted none');
  const [unscaledQ, unscaledK] = unscaled(read.q, read.k, scale * Math.sqrt(headExtent), headExtent);
  const head: HeadWeights = {
    width,
    heads: count,
    projectionDim: visualProjection.length / width,
    classToken,
    epsilon: sameEpsilon(model, norm, readOut.norm),
    ln1: await readNorm(model, norm),
    ...read,
    q: unscaledQ,
    k: unscaledK,
    postNorm: await readNorm(model, readOut.norm),
    visualProjection,
  };
  return checkHead(head, model.name);
}

function expectWidth(model: OnnxModel, name: string, weight: Matrix, width: number, out: number | null): void {
  if (inputs(weight) === width && (out === null || outputs(weight) === out)) return;
  const got = `[${outputs(weight)}, ${inputs(weight)}]`;
  throw new DesapError(
    'ERR_GRAPH',
    `${model.name}: the weight of ${name}: got ${got}, wanted [${out ?? 'E'}, ${width}]`,
  );
}

function sameEpsilon(model: OnnxModel, a: Norm, b: Norm): number {
  if (a.epsilon === b.epsilon) return a.epsilon;
  throw new DesapError('ERR_GRAPH', `${model.name}: got layer norm epsilons ${a.epsilon} and ${b.epsilon}, wanted one`);
}

async function readNorm(model: OnnxModel, { weight, bias }: Norm): Promise<LinearWeights> {
  return { weight: await readFloats(model, weight), bias: await readFloats(model, bias) };
}

async function readLinear(model: OnnxModel, layer: Projection | Linear, width: number): Promise<LinearWeights> {
  const weight = await readMatrix(model, layer.weight as Matrix);
  const bias = layer.bias === null ? new Float32Array(width) : await readVector(model, layer.bias as Vector);
  return { weight: times(weight, layer.alpha), bias: times(bias, layer.beta) };
}

function times(values: Float32Array, factor: number): Float32Array {
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
function unscaled(
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
