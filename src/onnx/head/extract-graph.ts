import { DesapError, invalid } from '../../errors.js';
import { checkHead, type HeadWeights, type LinearWeights } from '../../head.js';
import type { ModelSource, OnnxModel } from '../format/model.js';
import { readLinear, unscaled } from '../linear-weights.js';
import type { Projection } from '../search/attention.js';
import type { Linear, Matrix } from '../search/linear.js';
import { inputs, outputs } from '../search/linear.js';
import type { LayerNorm } from '../search/norm.js';
import { readOutOf, readTower } from '../tower.js';
import { readFloats } from '../weights.js';

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

function sameEpsilon(model: OnnxModel, a: LayerNorm, b: LayerNorm): number {
  if (a.epsilon === b.epsilon) return a.epsilon;
  throw new DesapError('ERR_GRAPH', `${model.name}: got layer norm epsilons ${a.epsilon} and ${b.epsilon}, wanted one`);
}

async function readNorm(model: OnnxModel, { weight, bias }: LayerNorm): Promise<LinearWeights> {
  return { weight: await readFloats(model, weight), bias: await readFloats(model, bias) };
}
