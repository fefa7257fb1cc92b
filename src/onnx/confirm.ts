import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import { checkHead, type HeadWeights } from '../head.js';
import type { NumberMatrix } from '../kernels/numeric.js';
import { floatData, halfToFloat, type TensorLike } from '../tensor.js';
import { relativeError } from './compare.js';
import { cut, type EditedGraph, type OrtModule, openGraph } from './edit.js';
import type { ModelSource } from './model.js';
import { trialPixels } from './pixels.js';
import { toleranceOf } from './precision.js';
import type { ReadOut } from './read-out.js';
import { attentionRows, readOutRow } from './recompute.js';
import { floatPixels, HIDDEN_STATES, toFloat, towerGraph } from './split.js';
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
  /** What was allowed: rounding of the coarsest form that numbers have in the graph. */
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
  const tower = readTower(visionModel, 'visionModel');
  const values = await headValues(ort, tower, head, feed(ort, pixelValues ?? trialPixels(tower)), session);
  return compareHead(tower, head, values);
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
  const llava = readTower(llavaVisionEncoder, 'llavaVisionEncoder');
  const clip = readTower(clipVisionModel, 'clipVisionModel');
  const pixels = feed(ort, pixelValues ?? trialPixels(clip));
  const [wanted, got] = [
    await run(ort, clip, towerGraph(clip), pixels, session),
    await run(ort, llava, towerGraph(llava), pixels, session),
  ];
  return compareTowers(llava, got[HIDDEN_STATES], clip, wanted[HIDDEN_STATES]);
}

/** A vision tower with its open {@link towerGraph}. */
export interface OpenTower {
  readonly structure: TowerStructure;
  readonly session: InferenceSession;
}

/**
 * {@link confirmHead} and {@link confirmTower} on one image, with one session for the CLIP file and no further one for the
 * tower: no weight is loaded twice.
 *
 * @throws DesapError as both of them
 */
export async function confirmBoth(
  ort: OrtModule,
  llava: OpenTower,
  visionModel: ModelSource,
  head: HeadWeights,
  { pixelValues, session }: ConfirmOptions = {},
): Promise<void> {
  const clip = readTower(visionModel, 'visionModel');
  const pixels = feed(ort, pixelValues ?? trialPixels(clip));
  const wanted = await headValues(ort, clip, head, pixels, session);
  compareHead(clip, head, wanted);
  const got = await runOpen(llava, pixels);
  compareTowers(llava.structure, got[HIDDEN_STATES], clip, wanted[HIDDEN_STATES]);
}

/** The values of a CLIP vision model that a head is compared with. */
async function headValues(
  ort: OrtModule,
  tower: TowerStructure,
  head: HeadWeights,
  pixels: Tensor,
  session: InferenceSession.SessionOptions | undefined,
): Promise<Record<string, Tensor>> {
  checkHead(head);
  const { graph, blocks } = tower;
  const { name } = graph.model;
  const readOut = readOutOf(tower);
  if (tower.width !== head.width)
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `head: got width ${head.width}, wanted ${tower.width}, the width of ${name}`,
    );
  const { out } = blocks[blocks.length - 1];
  const { inputs, nodes } = floatPixels(tower);
  const edited = cut(graph.model, {
    inputs,
    outputs: [HIDDEN_STATES, ATTENTION, LAST_HIDDEN, EMBEDDING],
    nodes: [
      ...nodes,
      toFloat(tower.hidden, HIDDEN_STATES),
      ...sumNodes(out.laterBias === null ? [out.output] : [out.output, out.laterBias], ATTENTION),
      ...sumNodes(readOut.norm.summands, LAST_HIDDEN),
      toFloat(readOut.projection.output, EMBEDDING),
    ],
  });
  return run(ort, tower, edited, pixels, session);
}

function readOutOf({ graph, readOut }: TowerStructure): ReadOut {
  if (readOut !== null) return readOut;
  throw new DesapError(
    'ERR_GRAPH',
    `${graph.model.name}: looked for a visual projection of the norm of one row at the end of the graph; found none. Confirm a head with the CLIP vision_model.onnx`,
  );
}

function compareHead(
  tower: TowerStructure,
  head: HeadWeights,
  values: Readonly<Record<string, Tensor>>,
): HeadConfirmation {
  const { graph } = tower;
  const hidden = firstImage(values[HIDDEN_STATES]);
  const rows = sampled(hidden.rows);
  const attended = relativeError(attentionRows(head, hidden, rows).data, pick(firstImage(values[ATTENTION]), rows));
  const embedding = head.classToken
    ? relativeError(
        readOutRow(head, firstRow(values[LAST_HIDDEN], head.width)).data,
        firstRow(values[EMBEDDING], head.embedding).data,
      )
    : null;
  // The head starts from the graph's own hidden states.
  const tolerance = toleranceOf(graph, readOutOf(tower).projection.output, tower.hidden);
  if (!(attended <= tolerance && (embedding ?? 0) <= tolerance))
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `head: does not belong to ${graph.model.name}: got relative errors of ${attended.toExponential(1)} (attention) and ` +
        `${embedding === null ? 'none' : embedding.toExponential(1)} (embedding), wanted at most ${tolerance}`,
    );
  return { attention: attended, embedding, tolerance };
}

function compareTowers(llava: TowerStructure, got: Tensor, clip: TowerStructure, wanted: Tensor): TowerConfirmation {
  const names = `${llava.graph.model.name} and ${clip.graph.model.name}`;
  if (got.dims.join() !== wanted.dims.join())
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `${names}: got hidden states [${got.dims.join(', ')}] and [${wanted.dims.join(', ')}], wanted equal ones`,
    );
  const error = relativeError(got.data as Float32Array, wanted.data as Float32Array);
  const tolerance = Math.max(...[llava, clip].map(({ graph, hidden }) => toleranceOf(graph, hidden)));
  if (!(error <= tolerance))
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `${names}: got hidden states that differ by ${error.toExponential(1)} relative to the largest, wanted at most ${tolerance}: the towers are not the same`,
    );
  return { error, tolerance };
}

/** An image as float32. */
function feed(ort: OrtModule, image: TensorLike): Tensor {
  const { data, half, dims } = floatData('pixelValues', image);
  return new ort.Tensor('float32', half ? Float32Array.from(data, halfToFloat) : (data as Float32Array), dims);
}

async function run(
  ort: OrtModule,
  structure: TowerStructure,
  graph: EditedGraph,
  pixels: Tensor,
  options: InferenceSession.SessionOptions | undefined,
): Promise<Record<string, Tensor>> {
  const session = await openGraph(ort, graph, options);
  try {
    return await runOpen({ structure, session }, pixels);
  } finally {
    await session.release();
  }
}

async function runOpen({ structure, session }: OpenTower, pixels: Tensor): Promise<Record<string, Tensor>> {
  try {
    return (await session.run({ [structure.pixels.name]: pixels })) as Record<string, Tensor>;
  } catch (cause) {
    throw new DesapError(
      'ERR_GRAPH',
      `${structure.graph.model.name}: onnxruntime does not run a part of it on an image [${pixels.dims.join(', ')}]: ${(cause as Error).message}`,
      { cause },
    );
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
