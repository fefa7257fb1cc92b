import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import { checkHead, type HeadWeights } from '../head.js';
import type { NumberMatrix } from '../kernels/numeric.js';
import { floatData, floatToHalf, halfToFloat, type TensorLike } from '../tensor.js';
import { relativeError, toleranceOf } from './compare.js';
import { cut, type OrtModule, openGraph } from './edit.js';
import type { ModelSource } from './model.js';
import { trialPixels } from './pixels.js';
import { DataType } from './proto.js';
import { attentionRows, readOutRow } from './recompute.js';
import { HIDDEN_STATES, toFloat, towerGraph } from './split.js';
import { readTower, type TowerStructure } from './tower.js';
import { type GraphNode, newNode } from './write.js';

export interface ConfirmOptions {
  /** An image as the graph takes it, [1, 3, height, width]; default: seeded noise of the size that the graph says. */
  readonly pixelValues?: TensorLike;
  /** Session options of ONNX Runtime. */
  readonly session?: InferenceSession.SessionOptions;
}

/** Largest difference between what a graph computes and what the head gives, relative to the largest magnitude. */
export interface HeadConfirmation {
  /** Attention after its output projection: eight of its rows. */
  readonly attention: number;
  /** The class token's row in the shared space, [E]; null without a class token. */
  readonly embedding: number | null;
  /** What was allowed: rounding of the graph's element type. */
  readonly tolerance: number;
}

/** Largest difference between the hidden states of two files, relative to the largest magnitude. */
export interface TowerConfirmation {
  readonly error: number;
  readonly tolerance: number;
}

const ATTENTION = 'desap.attention';
const LAST_HIDDEN = 'desap.last_hidden';
const EMBEDDING = 'desap.embedding';

/**
 * Runs a CLIP vision model on one image and recomputes its last attention and its read-out from the head, in float64:
 * a wrong orientation, head count, scale or weight shows. (What does not show: a factor that moved between q and k.)
 * Eight rows of the attention are compared; each depends on every weight of it.
 *
 * @param ort the onnxruntime-node module
 * @param visionModel the CLIP `vision_model.onnx` that the head belongs to
 * @throws DesapError `ERR_HEAD_MISMATCH` with the errors found; `ERR_GRAPH`, `ERR_FILE`; `ERR_VALUE` when the size of an
 *   image cannot be told
 */
export async function confirmHead(
  ort: OrtModule,
  visionModel: ModelSource,
  head: HeadWeights,
  { pixelValues, session }: ConfirmOptions = {},
): Promise<HeadConfirmation> {
  checkHead(head);
  const tower = readTower(visionModel, 'visionModel');
  const { graph, blocks, readOut } = tower;
  const { name } = graph.model;
  if (readOut === null)
    throw new DesapError(
      'ERR_GRAPH',
      `${name}: looked for a visual projection of the norm of one row at the end of the graph; found none. Confirm a head with the CLIP vision_model.onnx`,
    );
  if (tower.width !== head.width)
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `head: got width ${head.width}, wanted ${tower.width}, the width of ${name}`,
    );
  const edited = cut(graph.model, {
    outputs: [HIDDEN_STATES, ATTENTION, LAST_HIDDEN, EMBEDDING],
    nodes: [
      toFloat(tower.hidden, HIDDEN_STATES),
      toFloat(blocks[blocks.length - 1].out.output, ATTENTION),
      ...sumNodes(readOut.norm.summands, LAST_HIDDEN),
      toFloat(readOut.projection.output, EMBEDDING),
    ],
  });
  const values = await run(ort, tower, edited, feed(ort, tower, pixelValues ?? trialPixels(tower)), session);
  const hidden = firstImage(values[HIDDEN_STATES]);
  const rows = sampled(hidden.rows);
  const attended = relativeError(attentionRows(head, hidden, rows).data, pick(firstImage(values[ATTENTION]), rows));
  const embedding = head.classToken
    ? relativeError(
        readOutRow(head, firstRow(values[LAST_HIDDEN], head.width)).data,
        firstRow(values[EMBEDDING], head.embedding).data,
      )
    : null;
  const tolerance = toleranceIn(tower);
  if (!(attended <= tolerance && (embedding ?? 0) <= tolerance))
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `head: does not belong to ${name}: got relative errors of ${attended.toExponential(1)} (attention) and ` +
        `${embedding === null ? 'none' : embedding.toExponential(1)} (embedding), wanted at most ${tolerance}`,
    );
  return { attention: attended, embedding, tolerance };
}

/**
 * Runs a LLaVA vision encoder and a CLIP vision model on one image: the hidden states that DeSAP works on have to agree,
 * or the CLIP file's last layer does not belong behind the LLaVA file's tower.
 *
 * @throws DesapError `ERR_HEAD_MISMATCH` with both files and the error; otherwise as {@link confirmHead}
 */
export async function confirmTower(
  ort: OrtModule,
  llavaVisionEncoder: ModelSource,
  clipVisionModel: ModelSource,
  { pixelValues, session }: ConfirmOptions = {},
): Promise<TowerConfirmation> {
  const towers = [readTower(llavaVisionEncoder, 'llavaVisionEncoder'), readTower(clipVisionModel, 'clipVisionModel')];
  const [a, b] = towers;
  const names = `${a.graph.model.name} and ${b.graph.model.name}`;
  const pixels = pixelValues ?? trialPixels(b);
  const hidden: Tensor[] = [];
  for (const tower of towers)
    hidden.push((await run(ort, tower, towerGraph(tower), feed(ort, tower, pixels), session))[HIDDEN_STATES]);
  if (hidden[0].dims.join() !== hidden[1].dims.join())
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `${names}: got hidden states [${hidden[0].dims.join(', ')}] and [${hidden[1].dims.join(', ')}], wanted equal ones`,
    );
  const error = relativeError(hidden[0].data as Float32Array, hidden[1].data as Float32Array);
  const tolerance = Math.max(toleranceIn(a), toleranceIn(b));
  if (!(error <= tolerance))
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `${names}: got hidden states that differ by ${error.toExponential(1)} relative to the largest, wanted at most ${tolerance}: the towers are not the same`,
    );
  return { error, tolerance };
}

function toleranceIn({ graph, hidden, blocks }: TowerStructure): number {
  const isQuantized = blocks.some(({ q, out }) => q.quantized || out.quantized);
  return toleranceOf(graph.elementType(hidden), isQuantized);
}

/** The image as this graph takes it. */
function feed(ort: OrtModule, { pixels }: TowerStructure, image: TensorLike): Tensor {
  const { data, half, dims } = floatData('pixelValues', image);
  if (pixels.type === DataType.float16)
    return new ort.Tensor('float16', half ? (data as Uint16Array) : Uint16Array.from(data, floatToHalf), dims);
  return new ort.Tensor('float32', half ? Float32Array.from(data, halfToFloat) : (data as Float32Array), dims);
}

async function run(
  ort: OrtModule,
  tower: TowerStructure,
  graph: ReturnType<typeof cut>,
  pixels: Tensor,
  options: InferenceSession.SessionOptions | undefined,
): Promise<Record<string, Tensor>> {
  const session = await openGraph(ort, graph, options);
  try {
    return (await session.run({ [tower.pixels.name]: pixels })) as Record<string, Tensor>;
  } catch (cause) {
    throw new DesapError(
      'ERR_GRAPH',
      `${graph.name}: onnxruntime does not run a part of it on an image [${pixels.dims.join(', ')}]: ${(cause as Error).message}`,
      { cause },
    );
  } finally {
    await session.release();
  }
}

/** The first image's rows of [batch, N, D], or of [N, D]. */
function firstImage({ data, dims }: Tensor): NumberMatrix {
  const [rows, cols] = dims.slice(-2);
  return { data: (data as Float32Array).subarray(0, rows * cols), rows, cols };
}

function firstRow({ data }: Tensor, cols: number): NumberMatrix {
  return { data: (data as Float32Array).subarray(0, cols), rows: 1, cols };
}

/** Rows to compare: each depends on every weight and on all other rows. */
const SAMPLES = 8;

/** Row numbers from the first on, evenly spread. */
function sampled(count: number): number[] {
  const samples = Math.min(SAMPLES, count);
  return Array.from({ length: samples }, (_, i) => Math.floor((i * count) / samples));
}

function pick({ data, cols }: NumberMatrix, rows: readonly number[]): Float64Array {
  return Float64Array.from(
    { length: rows.length * cols },
    (_, i) => data[rows[Math.floor(i / cols)] * cols + (i % cols)],
  );
}

/** Nodes that hand out a sum of values as float32 under another name. */
function sumNodes([first, ...rest]: readonly string[], as: string): GraphNode[] {
  const partial = (i: number) => (i === 0 ? first : `${as}.${i}`);
  const sums = rest.map((value, i) => newNode({ op: 'Add', inputs: [partial(i), value], outputs: [partial(i + 1)] }));
  return [...sums, toFloat(partial(rest.length), as)];
}
