import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DesapError } from '../../errors.js';
import { cut, type OrtModule, openGraph } from '../edit.js';
import { Builder } from '../format/builder.js';
import { DataType } from '../format/proto.js';
import { positionCount } from '../search/positions.js';
import { toleranceOf } from '../search/precision.js';
import { batchFirst, floatPixels, HIDDEN_STATES, IMAGE_FEATURES, PATCHES } from '../split.js';
import type { Projector, TowerStructure } from '../tower.js';
import { relativeError } from './compare.js';
import { trialPixels, uniform } from './pixels.js';
import { type OpenTower, pickRows, pixelTensor, runOpen } from './trial.js';

const EMBEDDED = 'desap.embedded';
const FEATURES = 'desap.features';

/**
 * Embeds some images. The rows that are the same for two of them are learnt ones: the class token's has to be the only one. And
 * the second patch of the first line of the image has to be the second patch row.
 *
 * @throws DesapError `ERR_GRAPH` for registers, a class token in another place or none where one was read, and patches in another order
 */
export async function confirmRows(
  ort: OrtModule,
  tower: TowerStructure,
  pixels: Tensor,
  session: InferenceSession.SessionOptions | undefined,
): Promise<void> {
  const { graph, blocks, width } = tower;
  const builder = new Builder(graph.model.opset);
  const inputs = floatPixels(builder, tower);
  builder.float(batchFirst(builder, tower, blocks[0].input), EMBEDDED);
  const embedded = cut(graph.model, { inputs, outputs: [EMBEDDED], nodes: builder.nodes });
  const random = uniform(2);
  const open = { structure: tower, session: await openGraph(ort, embedded, session) };
  const classTokens = Number(tower.classToken);
  const fail = (looked: string, found: string) =>
    new DesapError('ERR_GRAPH', `${graph.model.name}: looked for ${looked}; found ${found}`);
  try {
    const embed = async (image: Float32Array) => {
      const { data, dims } = (await runOpen(open, pixelTensor(ort, { data: image, dims: pixels.dims })))[EMBEDDED];
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

    const [height, across] = pixels.dims.slice(-2);
    const side = Math.sqrt((height * across) / (rows.length - classTokens));
    // Patches that are no squares, or a grid of one column, say nothing of their order.
    if (![side, height / side, across / side].every(Number.isInteger) || across < 2 * side) return;
    const inSecondPatch = (x: number, y: number) => y < side && x >= side && x < 2 * side;
    const changed = await embed(
      image.map((value, i) => (inSecondPatch(i % across, Math.floor(i / across) % height) ? value + 1 : value)),
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
  const builder = new Builder(model.opset);
  const inputs = [...floatPixels(builder, structure), { name: HIDDEN_STATES, type: DataType.float }];
  // Both orders are turned into one another by the same transposition.
  builder.cast(batchFirst(builder, structure, HIDDEN_STATES), graph.elementType(hidden), hidden);
  builder.float(output, FEATURES);
  const whole = cut(model, { inputs, outputs: [FEATURES], nodes: builder.nodes });
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
    if (session.inputNames.includes(pixels.name)) feeds[pixels.name] = pixelTensor(ort, trialPixels(structure));
    const wanted = (await session.run(feeds))[FEATURES];
    const wide = wanted.dims[wanted.dims.length - 1];
    const count = tokens - Number(dropsClassToken);
    if (wanted.data.length !== count * wide)
      throw fail(`found features [${wanted.dims.join(', ')}] of hidden states [1, ${tokens}, ${width}]`);
    // All rows but the first, the last one first: no row may depend on its place, or on how many there are.
    const order = Array.from({ length: count - 1 }, (_, i) => count - 1 - i);
    const picked = pickRows(
      rows,
      width,
      order.map((row) => row + Number(dropsClassToken)),
    );
    const patches = new ort.Tensor('float32', Float32Array.from(picked), [1, order.length, width]);
    const got = (await projector.run({ [PATCHES]: patches }))[IMAGE_FEATURES].data as Float32Array;
    const error = relativeError(got, pickRows(wanted.data as Float32Array, wide, order));
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
