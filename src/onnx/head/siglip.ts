import type { InferenceSession, Tensor } from 'onnxruntime-common';
import type { BlockWeights, SiglipHead } from '../../block-weights.js';
import type { Backend } from '../../devices/kernel-api.js';
import { DesapError } from '../../errors.js';
import { float32, floatToHalf } from '../../tensor.js';
import { readBlockWeights } from '../block-weights.js';
import { cut, type OrtModule, openGraph } from '../edit.js';
import { Builder } from '../format/builder.js';
import type { OnnxValue } from '../format/messages.js';
import { readModel } from '../format/model.js';
import { DataType, isFloat } from '../format/proto.js';
import { roundingOf, TOLERANCE } from '../last-block.js';
import { type PoolingTrial, readPoolingHead } from '../pooling-head.js';
import { Graph } from '../search/graph.js';
import { findLastBlock } from '../search/last-block.js';
import { findPoolingHead, type PoolingHead } from '../search/pooling-head.js';
import { relativeError } from './compare.js';
import { imageSide, uniform } from './pixels.js';

/** A SigLIP's vision tower, as far as a read-out needs it. */
export interface SiglipVision {
  readonly head: SiglipHead;
  /** Heads and epsilon of the pooling head. */
  readonly heads: number;
  readonly epsilon: number;
  /** The weights of its last blocks, without the pooling head: the last one, and the one in front of it. */
  readonly blocks: readonly [last: BlockWeights, before: BlockWeights];
}

const STATES = 'desap.states';
const POOLED = 'desap.pooled';

/**
 * Reads a SigLIP `vision_model.onnx` by structure, runs it on a trial image, and compares what it pools with what the weights give.
 *
 * @throws DesapError `ERR_FILE`; `ERR_GRAPH` with what was looked for, and the operator in the way; `ERR_HEAD_MISMATCH` with the error
 */
export async function readSiglip(
  ort: OrtModule,
  path: string,
  { backend, session }: { backend: Backend; session?: InferenceSession.SessionOptions },
): Promise<SiglipVision> {
  const graph = new Graph(readModel(path, 'siglip'));
  const found = findPoolingHead(graph);
  const { name } = graph.model;
  const last = findLastBlock(graph, found.postNorm.output);
  const before = findLastBlock(graph, last.block.input);

  const trial = await runTrial(ort, found, session);
  const { head, heads } = await readPoolingHead(ort, found, trial);
  const { epsilon } = found.postNorm;
  if (found.norm.epsilon !== epsilon)
    throw new DesapError(
      'ERR_GRAPH',
      `${name}: got layer norm epsilons ${epsilon} and ${found.norm.epsilon}, wanted one`,
    );
  const dense = ({ weight, bias }: SiglipHead['k']) => ({
    weight: float32(weight, [bias.length, weight.length / bias.length]),
    bias,
  });
  const { global } = await backend.siglipReadOut({
    attention: trial.states,
    postNorm: head.postNorm,
    query: head.probe,
    key: dense(head.k),
    value: dense(head.v),
    out: dense(head.out),
    norm: head.norm,
    fc1: dense(head.fc1),
    fc2: dense(head.fc2),
    heads,
    epsilon,
  });
  const tolerance = TOLERANCE[roundingOf(graph, found.linears, found.output)];
  const pooled = await backend.unitRows({ x: float32(trial.pooled, [1, trial.pooled.length]) });
  const error = relativeError(global, pooled.data as Float32Array);
  if (!(error <= tolerance))
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `${name}: got a pooling head whose output and that of the file differ by ${error.toExponential(1)} relative to the largest, wanted at most ${tolerance}`,
    );
  return { head, heads, epsilon, blocks: [await readBlockWeights(ort, last), await readBlockWeights(ort, before)] };
}

/** The file on an image of noise: the rows in front of its last norm, and what it pools of them. */
async function runTrial(
  ort: OrtModule,
  { graph: read, output, postNorm }: PoolingHead,
  options?: InferenceSession.SessionOptions,
): Promise<PoolingTrial & { states: Tensor; pooled: Float32Array }> {
  const { model } = read;
  const side = imageSide(read, postNorm.output, postNorm.weight.dims[0], false);
  const builder = new Builder(model.opset);
  const [first, ...others] = postNorm.summands;
  const outputs = [builder.float(builder.sum(first, ...others), STATES), builder.float(output, POOLED)];
  const graph = cut(model, { outputs, nodes: builder.nodes });
  const session = await openGraph(ort, graph, options);
  try {
    const inputs = model.inputs.filter((input) => graph.inputs.includes(input.name));
    const feeds = Object.fromEntries(inputs.map((input) => [input.name, noise(ort, model.name, input, side)]));
    const results = await session.run(feeds).catch((cause: Error) => {
      throw new DesapError(
        'ERR_GRAPH',
        `${model.name}: onnxruntime does not run it on a trial image: ${cause.message}`,
        { cause },
      );
    });
    const { data, dims } = results[STATES];
    const [rows, width] = dims.slice(-2);
    return {
      feeds,
      states: float32(data as Float32Array, [rows, width]),
      pooled: results[POOLED].data as Float32Array,
      rows,
    };
  } finally {
    await session.release();
  }
}

/** Pixels between -1 and 1, [1, 3, H, W]. */
function noise(ort: OrtModule, file: string, { name, type, dims }: OnnxValue, side: number | null): Tensor {
  if (!isFloat(type) || dims?.length !== 4)
    throw new DesapError(
      'ERR_GRAPH',
      `${file}: looked for one input, pixels [images, 3, H, W]; found '${name}' of ${dims?.length ?? 'unknown'} axes: give the folder's model.safetensors alone`,
    );
  const extents = dims.slice(2).map((extent) => (typeof extent === 'number' && extent > 0 ? extent : side));
  if (extents.some((extent) => extent === null))
    throw new DesapError('ERR_GRAPH', `${file}: looked for the size of an image in the patch embedding; found none`);
  const shape = [1, 3, ...(extents as number[])];
  const next = uniform(1);
  const data = Float32Array.from({ length: shape.reduce((count, extent) => count * extent, 1) }, () => 2 * next() - 1);
  if (type !== DataType.float16) return new ort.Tensor('float32', data, shape);
  return new ort.Tensor('float16', Uint16Array.from(data, floatToHalf), shape);
}
