import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import { checkHead, type HeadWeights } from '../head.js';
import type { NumberMatrix } from '../kernels/numeric.js';
import { floatData, halfToFloat, type TensorLike } from '../tensor.js';
import { relativeError } from './compare.js';
import { cut, type EditedGraph, type OrtModule, openGraph } from './edit.js';
import type { ModelSource } from './model.js';
import { trialPixels, uniform } from './pixels.js';
import { positionCount } from './positions.js';
import { toleranceOf } from './precision.js';
import { DataType } from './proto.js';
import { beforePicks } from './read-out.js';
import { attentionRows, readOutRow } from './recompute.js';
import { batchFirst, floatPixels, HIDDEN_STATES, IMAGE_FEATURES, PATCHES, toFloat, towerGraph } from './split.js';
import { type Projector, readOutOf, readTower, type TowerStructure } from './tower.js';
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
const EMBEDDED = 'desap.embedded';
const FEATURES = 'desap.features';

/**
 * Runs a CLIP vision model on one image and recomputes its last attention and its read-out from the head, in float64:
 * a wrong orientation, head count, scale or weight shows. (What does not show: a factor that moved between q and k.)
 * Eight rows of the attention are compared; each depends on every weight of it. Two images are embedded: the class token's row
 * has to be the only one that no image changes.
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
  const pixels = feed(ort, pixelValues ?? trialPixels(tower));
  const values = await headValues(ort, tower, head, pixels, session);
  await confirmRows(ort, tower, pixels, session);
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
 * tower: no weight of a layer is loaded twice.
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
  await confirmRows(ort, clip, pixels, session);
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
      ...batchFirst(tower, tower.hidden, HIDDEN_STATES),
      ...sumNodes(out.laterBias === null ? [out.output] : [out.output, out.laterBias], ATTENTION),
      // All rows, though the file may pick one first: which row it picks is to show.
      ...sumNodes(
        readOut.norm.summands.map((value) => beforePicks(graph, value).value),
        LAST_HIDDEN,
      ),
      toFloat(readOut.projection.output, EMBEDDING),
    ],
  });
  return run(ort, tower, edited, pixels, session);
}

function compareHead(
  tower: TowerStructure,
  head: HeadWeights,
  values: Readonly<Record<string, Tensor>>,
): HeadConfirmation {
  const { graph } = tower;
  const [images, count] = values[HIDDEN_STATES].dims;
  const states = values[HIDDEN_STATES].data as Float32Array;
  const hidden = { data: states.subarray(0, count * head.width), rows: count, cols: head.width };
  const rows = sampled(count);
  // Between the layers the rows lie as the file has them, in whatever shape.
  const stride = tower.batchFirst ? 1 : images;
  const attention = pick(
    values[ATTENTION].data as Float32Array,
    head.width,
    rows.map((row) => row * stride),
  );
  const attended = relativeError(attentionRows(head, hidden, rows).data, attention);
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

function pick(data: Float32Array, cols: number, rows: readonly number[]): Float64Array {
  return Float64Array.from(
    { length: rows.length * cols },
    (_, i) => data[rows[Math.floor(i / cols)] * cols + (i % cols)],
  );
}

/**
 * Embeds some images. The rows that are the same for two of them are learnt ones: the class token's has to be the only one. And
 * the second patch of the first line of the image has to be the second patch row.
 *
 * @throws DesapError `ERR_GRAPH` for registers, a class token in another place or none where one was read, and patches in another order
 */
async function confirmRows(
  ort: OrtModule,
  tower: TowerStructure,
  pixels: Tensor,
  session: InferenceSession.SessionOptions | undefined,
): Promise<void> {
  const { graph, blocks, width } = tower;
  const { inputs, nodes } = floatPixels(tower);
  const embedded = cut(graph.model, {
    inputs,
    outputs: [EMBEDDED],
    nodes: [...nodes, ...batchFirst(tower, blocks[0].input, EMBEDDED)],
  });
  const random = uniform(2);
  const open = { structure: tower, session: await openGraph(ort, embedded, session) };
  const classTokens = Number(tower.classToken);
  const fail = (looked: string, found: string) =>
    new DesapError('ERR_GRAPH', `${graph.model.name}: looked for ${looked}; found ${found}`);
  try {
    const embed = async (image: Float32Array) => {
      const { data, dims } = (await runOpen(open, feed(ort, { data: image, dims: pixels.dims })))[EMBEDDED];
      return Array.from({ length: dims[1] }, (_, at) => (data as Float32Array).subarray(at * width, (at + 1) * width));
    };
    const image = pixels.data as Float32Array;
    const rows = await embed(image);
    const others = await embed(image.map(() => 2 * random() - 1));
    const learnt = [...rows.keys()].filter((at) => relativeError(others[at], rows[at]) <= SAME_ROW);
    if (learnt.join() !== (classTokens === 1 ? '0' : ''))
      throw fail(
        `patch rows behind ${classTokens === 1 ? 'one class token' : 'no class token'}`,
        `${learnt.length === 0 ? 'no row' : `the rows ${learnt.join(', ')}`} of ${rows.length} that the image has no part in`,
      );

    const grid = Math.sqrt(rows.length - classTokens);
    const [height, side] = pixels.dims.slice(-2);
    if (!Number.isInteger(grid) || grid < 2) return;
    const inSecondPatch = (x: number, y: number) => y < height / grid && x >= side / grid && x < (2 * side) / grid;
    const changed = await embed(
      image.map((value, i) => (inSecondPatch(i % side, Math.floor(i / side) % height) ? value + 1 : value)),
    );
    const change = changed.map((row, at) => relativeError(row, rows[at]));
    const most = change.indexOf(Math.max(...change));
    if (most !== classTokens + 1)
      throw fail('patches line by line', `the second patch of the image in row ${most}, wanted ${classTokens + 1}`);
  } finally {
    await open.session.release();
  }
}

/** Rows that no image changes differ by less: each is computed from the same numbers. */
const SAME_ROW = 1e-6;

/**
 * Runs a LLaVA file's own way from the hidden states to its features, on random rows, against the projector by itself: which rows it
 * takes, in what order, and that it works on each row alone. The tower has no part in it.
 *
 * Nothing is run when the file does not say how many rows there are.
 *
 * @param projector the open `projectorGraph`
 * @throws DesapError `ERR_GRAPH` when they differ
 */
export async function confirmProjector(
  ort: OrtModule,
  { structure, session: projector }: OpenTower,
  options?: InferenceSession.SessionOptions,
): Promise<void> {
  const { graph, blocks, hidden, width, projector: parts } = structure;
  const tokens = positionCount(graph, blocks[0].norm.output, width);
  if (tokens === null) return;
  const { model } = graph;
  const { output, dropsClassToken } = parts as Projector;
  const fed = `${HIDDEN_STATES}.fed`;
  const perm = structure.batchFirst ? [0, 1, 2] : [1, 0, 2];
  const { inputs, nodes } = floatPixels(structure);
  const whole = cut(model, {
    inputs: [...inputs, { name: HIDDEN_STATES, type: DataType.float }],
    outputs: [FEATURES],
    nodes: [
      ...nodes,
      newNode({ op: 'Transpose', inputs: [HIDDEN_STATES], outputs: [fed], attributes: { perm: { ints: perm } } }),
      newNode({ op: 'Cast', inputs: [fed], outputs: [hidden], attributes: { to: { i: graph.elementType(hidden) } } }),
      toFloat(output, FEATURES),
    ],
  });
  const random = uniform(3);
  const rows = Float32Array.from({ length: tokens * width }, () => 2 * random() - 1);
  const session = await openGraph(ort, whole, options);
  const fail = (got: string, cause?: unknown) =>
    new DesapError(
      'ERR_GRAPH',
      `${model.name}: looked for a projector that works on each patch by itself, in their order; ${got}`,
      { cause },
    );
  try {
    const feeds: Record<string, Tensor> = { [HIDDEN_STATES]: new ort.Tensor('float32', rows, [1, tokens, width]) };
    const { pixels } = structure;
    // A shape may be computed from the image's.
    if (session.inputNames.includes(pixels.name)) feeds[pixels.name] = feed(ort, trialPixels(structure));
    const wanted = (await session.run(feeds))[FEATURES];
    const wide = wanted.dims[wanted.dims.length - 1];
    const count = tokens - Number(dropsClassToken);
    if (wanted.data.length !== count * wide)
      throw fail(`found features [${wanted.dims.join(', ')}] of hidden states [1, ${tokens}, ${width}]`);
    // All rows but the first, the last one first: no row may depend on its place, or on how many there are.
    const order = Array.from({ length: count - 1 }, (_, i) => count - 1 - i);
    const picked = pick(
      rows,
      width,
      order.map((row) => row + Number(dropsClassToken)),
    );
    const patches = new ort.Tensor('float32', Float32Array.from(picked), [1, order.length, width]);
    const got = (await projector.run({ [PATCHES]: patches }))[IMAGE_FEATURES].data as Float32Array;
    const error = relativeError(got, pick(wanted.data as Float32Array, wide, order));
    const tolerance = toleranceOf(graph, output, hidden);
    if (!(error <= tolerance))
      throw fail(
        `found features that differ by ${error.toExponential(1)} relative to the largest, wanted at most ${tolerance}`,
      );
  } catch (cause) {
    if (cause instanceof DesapError) throw cause;
    throw fail(`onnxruntime does not run it: ${(cause as Error).message.split('\n').join(' ')}`, cause);
  } finally {
    await session.release();
  }
}

/** Nodes that hand out a sum of values as float32 under another name. */
function sumNodes([first, ...rest]: readonly string[], as: string): GraphNode[] {
  const partial = (i: number) => (i === 0 ? first : `${as}.${i}`);
  const sums = rest.map((value, i) => newNode({ op: 'Add', inputs: [partial(i), value], outputs: [partial(i + 1)] }));
  return [...sums, toFloat(partial(rest.length), as)];
}
