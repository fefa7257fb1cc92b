import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { deviceOptions } from '../devices/open.js';
import { DesapError, mismatch } from '../errors.js';
import { isFile, requireFolder } from '../files.js';
import { type AnalyzeOptions, type DeviceOptions, type HeadWeights, Pruner, type TensorLike } from '../index.js';
import { checkTaps, type TapName } from '../methods/method.js';
import { Once } from '../once.js';
import { relativeError } from '../onnx/head/compare.js';
import { confirmProjector } from '../onnx/head/confirm-rows.js';
import {
  IMAGE_FEATURES,
  type OrtModule,
  openGraph,
  PATCHES,
  projectorGraph,
  readTower,
  towerGraph,
} from '../onnx/index.js';
import { ortModule } from '../ort.js';
import { encodingOf } from '../pruner.js';
import { matrix, nonEmpty, widened } from '../tensor.js';
import { rowsAtOnce } from './at-once.js';
import { ClipCut, planClipCut } from './clip-cut.js';
import { findClipFile } from './clip-folder.js';
import { ClipText } from './clip-text.js';
import { type ClipTower, type TowerTile, type UnitPatches, WholeTower } from './clip-tower.js';
import { type LongTextOptions, longTextChoice } from './long-text.js';
import { checkShared } from './model-options.js';
import { allOrNone, atRest, runSession } from './session.js';
import { Taps, tapBlocks } from './taps.js';
import { type TextPlaceOptions, textOrt } from './text-place.js';
import { headAgain, requireFit, towerHead } from './tower-head.js';
import { type TowerOptions, towerChoice } from './tower-options.js';
import { floats, lastHalf, pixelExtents, waves } from './trial.js';
import type { Budget } from './vision-model.js';

const TOWER = { graph: 'the vision tower' };
const PROJECTOR = { argument: 'rows', graph: 'the projector' };

/** Options of every family with a CLIP tower. */
export interface ClipEncoderOptions
  extends DeviceOptions,
    Budget,
    LongTextOptions,
    TextPlaceOptions,
    Pick<AnalyzeOptions, 'encoding'> {
  /**
   * CLIP folder of the same vision tower: `onnx/vision_model.onnx` for the head, and for questions `onnx/text_model.onnx` and
   * `tokenizer.json`; or both towers in one `model.onnx`, as Optimum exports them.
   * Only with a `pruner` may it be left out: questions are then given as embeddings.
   */
  clip?: string;
  /** A head (weights, or the path of a head file made by `desap extract`) in place of the CLIP folder's `vision_model.onnx`. */
  head?: string | HeadWeights;
  /** A pruner that is open already, in place of a head; it stays the caller's and can only be checked by its shape. */
  pruner?: Pruner;
  /**
   * Blocks of the tower whose hidden states are kept for methods that look into them (`VisionPruneOptions.method`): each takes as much memory
   * as the hidden states themselves, and no further run. Default: none.
   */
  taps?: readonly TapName[];
  /**
   * Rows that are dropped inside the tower: the blocks behind the cut run on the others alone, of which `keep` chooses; docs/tower.md says
   * what it was measured to cost. `taps` are then of blocks behind the cut. Default: none.
   */
  tower?: TowerOptions;
  /** Session options of ONNX Runtime, for every session; default: its own, with threads that do not spin between runs. */
  session?: InferenceSession.SessionOptions;
  /** The onnxruntime-node module; default: the installed one. */
  ort?: OrtModule;
}

/** Images whose hidden states share memory and analysis; the tower runs on as many of them as are fast. */
const AT_ONCE = 16;

/** Rounding of float32, relative to the largest magnitude. */
export const TOLERANCE = 1e-3;

/** Where an image's hidden states lie, what its tower dropped, and the milliseconds that its share of the run took. */
export interface Encoded extends TowerTile {
  readonly milliseconds: number;
}

/** How images are encoded. */
export interface EncodeOptions {
  /** How many belong into one run, for towers whose images see each other. */
  readonly together?: number;
  /** Which patches of an image are units; default: all. */
  readonly units?: UnitPatches;
}

/**
 * A CLIP tower without its last layer and a projector behind it, over onnxruntime-node; the pruner of that last layer; and the text tower
 * that belongs to them. LLaVA and the families that have its tower are made of this.
 *
 * The user's `vision_encoder.onnx` is opened in two parts that share its weights on disk. The tower writes its hidden states straight into
 * memory that the pruner reads in place; the kept tokens are the projector's input as they are.
 */
export class ClipEncoder {
  /** Whether the tower takes several images in one run. */
  readonly #several = new Once<boolean>();

  private constructor(
    readonly pruner: Pruner,
    private readonly ownsPruner: boolean,
    private readonly clipText: ClipText | null,
    readonly ort: OrtModule,
    private readonly tower: ClipTower,
    private readonly projector: InferenceSession,
    /** Whether the file itself leaves the class token out of its features, or has none. */
    readonly dropsClassToken: boolean,
    readonly taps: Taps,
    readonly options: ClipEncoderOptions,
  ) {}

  /**
   * Opens the encoder in two parts, takes the head out of the CLIP folder, and checks by numbers that both belong to one tower.
   *
   * @param visionEncoder path of a `vision_encoder.onnx`
   * @param options whose names were checked
   * @param how `tuned`: models of the family have towers that were trained further than that of the CLIP folder; `text: false`: its text
   *   tower is not opened
   * @throws DesapError `ERR_FILE`; `ERR_GRAPH` when a file holds another kind of model; `ERR_HEAD_MISMATCH` when head and tower
   *   do not belong together; `ERR_DEVICE_UNAVAILABLE`; `ERR_MISSING_PACKAGE`; `ERR_VALUE` for the options
   */
  static async open(
    visionEncoder: string,
    options: ClipEncoderOptions,
    { text: hasText = true, ...how }: { readonly tuned?: boolean; readonly text?: boolean } = {},
  ): Promise<ClipEncoder> {
    nonEmpty('visionEncoder', visionEncoder, 'the path of a LLaVA vision_encoder.onnx');
    const { clip, pruner, taps = [] } = options;
    checkShared(options);
    encodingOf(options);
    longTextChoice(options);
    checkTaps(taps);
    const choice = towerChoice(options.tower);
    const [session, ort] = [atRest(options.session), await ortModule(options.ort)];
    if (clip !== undefined || !pruner)
      await requireFolder(nonEmpty('clip', clip as string, 'a CLIP folder (or the option pruner)'), 'a CLIP folder');
    if (!(await isFile(visionEncoder)))
      throw new DesapError('ERR_FILE', `${visionEncoder}: got no such file, wanted a LLaVA vision encoder`);
    const structure = readTower(visionEncoder);
    if (pruner) requireFit(pruner.head, structure, visionEncoder);
    const named = tapBlocks(taps, structure);
    const tapped = [...new Set(named.values())];
    const plan = choice && planClipCut(structure, choice, named);
    const graph = towerGraph(structure, tapped);
    if (graph.inputs.length !== 1)
      throw new DesapError(
        'ERR_GRAPH',
        `${visionEncoder}: got the inputs ${graph.inputs.join(', ')} of its vision tower, wanted the pixels only`,
      );
    const projector = projectorGraph(structure);
    return allOrNone(async (opened) => {
      const close = (part: { release(): Promise<void> }) => part.release();
      const whole = opened(await WholeTower.open(ort, graph, { tapped, session }), close);
      const projectorSession = opened(await openGraph(ort, projector, session), close);
      await confirmProjector(ort, { structure, session: projectorSession }, session);
      const { head } = options;
      const weights = pruner
        ? null
        : await towerHead(
            ort,
            visionEncoder,
            { structure, session: whole.input },
            { clip: clip!, head, session, ...how },
          );
      const { heads } = weights ?? pruner!.head;
      const taken = await Taps.read(ort, structure, { named, heads }, session);
      const text = clip === undefined || !hasText ? null : await findClipFile(clip, 'text');
      const own = weights
        ? opened(await Pruner.load(confirmed(weights, { clip: clip!, head }), deviceOptions(options)), (one) =>
            one.dispose(),
          )
        : pruner!;
      // Memory holds the tower's weights once.
      if (plan) await whole.release();
      const { backend } = own;
      const tower = plan
        ? opened(await ClipCut.open(ort, plan, { backend, heads, tolerance: TOLERANCE, session }), close)
        : whole;
      return new ClipEncoder(
        own,
        weights !== null,
        text === null ? null : opened(await openText(text, { ...options, session, ort }), (one) => one.dispose()),
        ort,
        tower,
        projectorSession,
        !structure.classToken || structure.projector?.dropsClassToken === true,
        taken,
        options,
      );
    });
  }

  /**
   * The CLIP text tower.
   * @throws DesapError `ERR_VALUE` when there is none: without a CLIP folder, or one without it
   */
  get text(): ClipText {
    if (this.clipText) return this.clipText;
    const { clip } = this.options;
    const wanted = 'its embeddings, null with taskShare: 0, or the option clip with a folder that has a text tower';
    throw mismatch('ERR_VALUE', 'question', `a text, and no text tower${clip ? ` in ${clip}` : ''}`, wanted);
  }

  /**
   * Runs the tower on images of one size, several in one run where it takes them.
   *
   * @param pixels of all images, one after the other
   * @param dims [images, 3, H, W]
   * @param argument what the caller knows the pixels by
   */
  async encode(
    pixels: Float32Array,
    dims: readonly number[],
    argument: string,
    { together, units = () => null }: EncodeOptions = {},
  ): Promise<Encoded[]> {
    const [count, ...extents] = dims;
    const size = pixels.length / count;
    const atOnce = together ?? (count > 1 && (await this.#takesSeveral(extents, argument)) ? AT_ONCE : 1);
    const how = {
      ...{ names: { ...TOWER, argument }, device: this.pruner.device },
      rowsAtOnce: together ? Number.POSITIVE_INFINITY : rowsAtOnce(this.options.session),
    };
    const images: Encoded[] = [];
    try {
      for (let at = 0; at < count; at += atOnce) {
        const own = Math.min(atOnce, count - at);
        const start = performance.now();
        const some = this.#pixels(pixels.subarray(at * size, (at + own) * size), [own, ...extents]);
        const tiles = await this.tower.run(some, { ...how, units: (tile, all) => units(at + tile, all) });
        const milliseconds = (performance.now() - start) / own;
        for (const tile of tiles) images.push({ ...tile, milliseconds });
      }
      return images;
    } catch (error) {
      for (const { batch } of images) void batch.release();
      throw error;
    }
  }

  /** [3, H, W] of the images that the tower takes; a square of 224 where it does not say it. */
  extents(): number[] {
    const stated = pixelExtents(this.tower.input);
    return [3, 224, 224].map((extent, axis) => stated[axis + 1] ?? extent);
  }

  #pixels(pixels: Float32Array, dims: readonly number[]): Tensor {
    return new this.ort.Tensor('float32', pixels, dims);
  }

  /** Whether the tower computes of two images what it computes of each: exports may have the batch of their trial image in shapes. */
  #takesSeveral(extents: readonly number[], argument: string): Promise<boolean> {
    return this.#several.get(async () => {
      if (pixelExtents(this.tower.input)[0] !== undefined) return false;
      const names = { ...TOWER, argument };
      const pixels = waves(2 * extents.reduce((product, extent) => product * extent, 1));
      const alone = await this.tower.states(this.#pixels(pixels.subarray(pixels.length / 2), [1, ...extents]), names);
      const tentative = { ...names, isTentative: true };
      const both = await this.tower.states(this.#pixels(pixels, [2, ...extents]), tentative).catch(() => null);
      return both !== null && relativeError(lastHalf(both), floats(alone)) <= TOLERANCE;
    });
  }

  /**
   * The projector alone.
   * @param rows [K, D] of any selection
   * @returns features [1, K, W]
   */
  async project(rows: TensorLike): Promise<Tensor> {
    const kept = matrix('rows', rows, { cols: this.pruner.head.width });
    const input = new this.ort.Tensor('float32', widened(kept), [1, kept.rows, kept.cols]);
    return (await runSession(this.projector, PROJECTOR, { [PATCHES]: input }))[IMAGE_FEATURES];
  }

  async dispose(): Promise<void> {
    if (this.ownsPruner) this.pruner.dispose();
    await Promise.all([this.clipText?.dispose(), this.tower.release(), this.projector.release()]);
  }
}

/** A head that was confirmed, once, and later the same again: the pruner holds none of its weights until a method reads them. */
function confirmed(weights: HeadWeights, origin: { readonly clip: string; readonly head?: string | HeadWeights }) {
  let first: HeadWeights | null = weights;
  return async () => {
    const head = first ?? (await headAgain(origin));
    first = null;
    return head;
  };
}

/** The text tower of a CLIP folder. */
export async function openText(
  model: string,
  given: ClipEncoderOptions & { session: object; ort: OrtModule },
): Promise<ClipText> {
  const { clip, longText, filter, session } = given;
  const ort = await textOrt(given, given.ort);
  return ClipText.open({ model, tokenizer: clip as string, longText, filter, session, ort });
}
