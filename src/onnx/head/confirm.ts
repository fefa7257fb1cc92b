import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { ABORTABLE, type Abortable, abortable } from '../../abort.js';
import { DesapError } from '../../errors.js';
import { checkHead, type HeadWeights } from '../../head.js';
import type { NumberMatrix } from '../../kernels/numeric.js';
import { type OptionNames, options } from '../../options.js';
import type { TensorLike } from '../../tensor.js';
import { checkOrt, checkSession, cut, type EditedGraph, type OrtModule, openGraph } from '../edit.js';
import { Builder } from '../format/builder.js';
import type { ModelSource } from '../format/model.js';
import { toleranceOf } from '../search/precision.js';
import { beforePicks } from '../search/read-out.js';
import { batchFirst, floatPixels, HIDDEN_STATES, towerGraph } from '../split.js';
import { readOutOf, readTower, type TowerStructure } from '../tower.js';
import { relativeError } from './compare.js';
import { confirmRows } from './confirm-rows.js';
import { trialPixels } from './pixels.js';
import { attentionRows, readOutRow } from './recompute.js';
import { type OpenTower, pickRows, pixelTensor, runOpen, sampled } from './trial.js';

/** Options of {@link confirmHead} and {@link confirmTower}. */
export interface ConfirmOptions extends Abortable {
  /** An image as the graph takes it, [1, 3, height, width]; default: seeded noise of the size that the graph says. */
  readonly pixelValues?: TensorLike;
  /** Session options of ONNX Runtime. */
  readonly session?: InferenceSession.SessionOptions;
}

const NAMES: OptionNames<ConfirmOptions> = { pixelValues: true, session: true, ...ABORTABLE };

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
 * Runs a CLIP vision model on one image, and recomputes its last attention and its read-out from the head, in float64.
 * A wrong orientation, head count, scale or weight shows; a factor that moved between q and k does not.
 * Eight rows of the attention are compared, and each depends on every weight. Two images are embedded: only the class token's row
 * may be the same for both.
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
  given?: ConfirmOptions,
): Promise<HeadConfirmation> {
  const { pixelValues, session, signal } = checked(ort, given);
  return abortable(signal, async () => {
    const tower = readTower(visionModel, 'visionModel');
    const pixels = pixelTensor(ort, pixelValues ?? trialPixels(tower));
    const values = await headValues(ort, tower, head, pixels, session);
    await confirmRows(ort, tower, pixels, session);
    return compareHead(tower, head, values);
  });
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
  given?: ConfirmOptions,
): Promise<TowerConfirmation> {
  const { pixelValues, session, signal } = checked(ort, given);
  return abortable(signal, async () => {
    const llava = readTower(llavaVisionEncoder, 'llavaVisionEncoder');
    const clip = readTower(clipVisionModel, 'clipVisionModel');
    const pixels = pixelTensor(ort, pixelValues ?? trialPixels(clip));
    const [wanted, got] = [
      await run(ort, clip, towerGraph(clip), pixels, session),
      await run(ort, llava, towerGraph(llava), pixels, session),
    ];
    return compareTowers(llava, got[HIDDEN_STATES], clip, wanted[HIDDEN_STATES]);
  });
}

/**
 * {@link confirmHead} and {@link confirmTower} on one image, with one session for the CLIP file and no further one for the
 * tower: no weight of a layer is loaded twice.
 *
 * @param tuned how far a tower may lie from CLIP's where it was trained further; default: no farther than numbers are rounded
 * @throws DesapError as both of them
 */
export async function confirmBoth(
  ort: OrtModule,
  llava: OpenTower,
  visionModel: ModelSource,
  head: HeadWeights,
  { pixelValues, session, tuned = 0 }: ConfirmOptions & { readonly tuned?: number } = {},
): Promise<TowerConfirmation> {
  const clip = readTower(visionModel, 'visionModel');
  const pixels = pixelTensor(ort, pixelValues ?? trialPixels(clip));
  const wanted = await headValues(ort, clip, head, pixels, session);
  await confirmRows(ort, clip, pixels, session);
  compareHead(clip, head, wanted);
  const got = await runOpen(llava, pixels);
  return compareTowers(llava.structure, got[HIDDEN_STATES], clip, wanted[HIDDEN_STATES], tuned);
}

/** What a caller gave beside the files. */
function checked(ort: OrtModule, given: ConfirmOptions | undefined): ConfirmOptions {
  const own = options('options', given, NAMES);
  checkOrt(ort);
  checkSession(own.session);
  return own;
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
  const builder = new Builder(graph.model.opset);
  const inputs = floatPixels(builder, tower);
  // All rows, though the file may pick one first: which row it picks is to show.
  const [last, ...residuals] = readOut.norm.summands.map((value) => beforePicks(graph, value).value);
  const outputs = [
    builder.float(batchFirst(builder, tower, tower.hidden), HIDDEN_STATES),
    builder.float(out.laterBias === null ? out.output : builder.sum(out.output, out.laterBias), ATTENTION),
    builder.float(builder.sum(last, ...residuals), LAST_HIDDEN),
    builder.float(readOut.projection.output, EMBEDDING),
  ];
  return run(ort, tower, cut(graph.model, { inputs, outputs, nodes: builder.nodes }), pixels, session);
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
  const attention = pickRows(
    values[ATTENTION].data as Float32Array,
    head.width,
    rows.map((row) => row * stride),
  );
  const attended = relativeError(attentionRows(head, hidden, rows).data, attention);
  const embedding = head.classToken
    ? relativeError(
        readOutRow(head, firstRow(values[LAST_HIDDEN], head.width)).data,
        firstRow(values[EMBEDDING], head.projectionDim).data,
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

function compareTowers(
  llava: TowerStructure,
  got: Tensor,
  clip: TowerStructure,
  wanted: Tensor,
  tuned = 0,
): TowerConfirmation {
  const names = `${llava.graph.model.name} and ${clip.graph.model.name}`;
  const kind = ({ classToken }: TowerStructure) => (classToken ? 'with a class token' : 'without a class token');
  if (llava.classToken !== clip.classToken)
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `${names}: got a tower ${kind(llava)} and a CLIP ${kind(clip)}: no such CLIP belongs to it (SigLIP towers have no class token, and no text tower that is read)`,
    );
  if (got.dims.join() !== wanted.dims.join())
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `${names}: got hidden states [${got.dims.join(', ')}] and [${wanted.dims.join(', ')}], wanted equal ones`,
    );
  const error = relativeError(got.data as Float32Array, wanted.data as Float32Array);
  const tolerance = Math.max(...[llava, clip].map(({ graph, hidden }) => toleranceOf(graph, hidden)));
  if (!(error <= Math.max(tolerance, tuned)))
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `${names}: got hidden states that differ by ${error.toExponential(1)} relative to the largest, wanted at most ${Math.max(tolerance, tuned)}: the towers are not the same`,
    );
  return { error, tolerance };
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

function firstRow({ data }: Tensor, cols: number): NumberMatrix {
  return { data: (data as Float32Array).subarray(0, cols), rows: 1, cols };
}
