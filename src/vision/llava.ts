import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DEVICE_OPTIONS, deviceOptions } from '../devices/open.js';
import { DesapError, invalid, mismatch } from '../errors.js';
import { isFile, requireFolder } from '../files.js';
import {
  type AnalyzeOptions,
  type DeviceOptions,
  type HeadWeights,
  Pruner,
  type TensorLike,
  type TextEmbeddings,
} from '../index.js';
import { relativeError } from '../onnx/head/compare.js';
import { confirmProjector } from '../onnx/head/confirm-rows.js';
import {
  type EditedGraph,
  HIDDEN_STATES,
  IMAGE_FEATURES,
  type OrtModule,
  openGraph,
  PATCHES,
  projectorGraph,
  readTower,
  towerGraph,
} from '../onnx/index.js';
import { type OptionNames, options } from '../options.js';
import { ortModule } from '../ort.js';
import { encodingOf } from '../pruner.js';
import { floatData, isTensor, matrix, nonEmpty, oneOf, widened } from '../tensor.js';
import { checkQuestion } from './check-question.js';
import { findClipFile } from './clip-folder.js';
import { ClipText, LONG_TEXT, type LongText } from './clip-text.js';
import { LlavaImage } from './llava-image.js';
import { VisionModelBase } from './model-base.js';
import { checkShared } from './model-options.js';
import { Once } from './once.js';
import { allOrNone, atRest, runSession, TENTATIVE } from './session.js';
import { TowerBatch } from './tower-batch.js';
import { requireFit, towerHead } from './tower-head.js';
import { floats, lastHalf, pixelExtents, waves } from './trial.js';
import type { Budget, InputNames, VisionInputs } from './vision-model.js';

const TOWER = { graph: 'the vision tower' };
const PROJECTOR = { argument: 'rows', graph: 'the projector' };

export interface LlavaVisionOptions extends DeviceOptions, Budget, Pick<AnalyzeOptions, 'encoding'> {
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
  /** What happens to questions longer than the text tower's context; default `segment`. */
  longText?: LongText;
  /** Session options of ONNX Runtime, for every session; default: its own, with threads that do not spin between runs. */
  session?: InferenceSession.SessionOptions;
  /** The onnxruntime-node module; default: the installed one. */
  ort?: OrtModule;
}

export const LLAVA_OPTIONS: OptionNames<LlavaVisionOptions> = {
  ...DEVICE_OPTIONS,
  ...{ clip: true, head: true, pruner: true, keep: true, keepRatio: true, encoding: true, longText: true },
  ...{ session: true, ort: true },
};
const RENAMED = { clipFolder: 'clip' };

/** Images of one run of the tower: its activations are that many times those of one. */
const AT_ONCE = 16;

/** Rounding of float32, relative to the largest magnitude. */
const TOLERANCE = 1e-3;

/**
 * LLaVA's vision encoder with pruning between its tower and its projector, over onnxruntime-node.
 *
 * The user's `vision_encoder.onnx` is opened in two parts that share its weights on disk. The tower writes its hidden states
 * straight into memory that the pruner reads in place; the kept tokens are the projector's input as they are.
 *
 * ONNX Runtime blocks Node's event loop while a session runs (version 1.30 runs on the main thread); the pruner does not.
 * A server puts the whole pipeline into a worker thread.
 *
 * ```ts
 * const vision = await LlavaVision.open('llava/onnx/vision_encoder.onnx', { clip: 'clip-vit-large-patch14-336' });
 * const { features, indices } = await vision.prune(pixelValues, 'is the fence wood or metal?', { keep: 64 });
 * ```
 */
export class LlavaVision extends VisionModelBase<LlavaImage, TensorLike> {
  /** Rows and width of the hidden states for each size of images seen so far. */
  readonly #shapes = new Map<string, readonly [rows: number, width: number]>();
  /** Whether the tower takes several images in one run. */
  readonly #several = new Once<boolean>();

  private constructor(
    /** The pruner, for single kernels and other text than a question. */
    readonly pruner: Pruner,
    private readonly ownsPruner: boolean,
    private readonly clipText: ClipText | null,
    private readonly ort: OrtModule,
    private readonly tower: InferenceSession,
    private readonly projector: InferenceSession,
    /** Whether the file itself leaves the class token out of its features, or has none. */
    readonly dropsClassToken: boolean,
    private readonly options: LlavaVisionOptions,
  ) {
    super('LlavaVision', 'llava', TOLERANCE, { keep: options.keep, keepRatio: options.keepRatio });
  }

  /**
   * Opens the encoder in two parts, takes the head out of the CLIP folder, and checks by numbers that both belong to one tower.
   *
   * @param visionEncoder path of a LLaVA `vision_encoder.onnx`
   * @throws DesapError `ERR_FILE`; `ERR_GRAPH` when a file holds another kind of model; `ERR_HEAD_MISMATCH` when head and tower
   *   do not belong together; `ERR_DEVICE_UNAVAILABLE`; `ERR_MISSING_PACKAGE`; `ERR_VALUE` for the options
   */
  static async open(visionEncoder: string, given: LlavaVisionOptions): Promise<LlavaVision> {
    nonEmpty('visionEncoder', visionEncoder, 'the path of a LLaVA vision_encoder.onnx');
    const checked = options('options', given, LLAVA_OPTIONS, RENAMED);
    const { clip, pruner, longText = 'segment' } = checked;
    checkShared(checked);
    encodingOf(checked);
    oneOf('longText', longText, LONG_TEXT);
    const [session, ort] = [atRest(checked.session), await ortModule(checked.ort)];
    if (clip !== undefined || !pruner)
      await requireFolder(nonEmpty('clip', clip as string, 'a CLIP folder (or the option pruner)'), 'a CLIP folder');
    if (!(await isFile(visionEncoder)))
      throw new DesapError('ERR_FILE', `${visionEncoder}: got no such file, wanted a LLaVA vision encoder`);
    const structure = readTower(visionEncoder);
    if (pruner) requireFit(pruner.head, structure, visionEncoder);
    const tower = towerGraph(structure);
    if (tower.inputs.length !== 1)
      throw new DesapError(
        'ERR_GRAPH',
        `${visionEncoder}: got the inputs ${tower.inputs.join(', ')} of its vision tower, wanted the pixels only`,
      );
    const projector = projectorGraph(structure);
    return allOrNone(async (opened) => {
      const open = async (graph: EditedGraph) => opened(await openGraph(ort, graph, session), (part) => part.release());
      const [towerSession, projectorSession] = [await open(tower), await open(projector)];
      await confirmProjector(ort, { structure, session: projectorSession }, session);
      const { head } = checked;
      const weights = pruner
        ? null
        : await towerHead(ort, visionEncoder, { structure, session: towerSession }, { clip: clip!, head, session });
      const text = clip === undefined ? null : await findClipFile(clip, 'text');
      return new LlavaVision(
        weights ? opened(await Pruner.load(weights, deviceOptions(checked)), (own) => own.dispose()) : pruner!,
        weights !== null,
        text === null ? null : opened(await openText(text, { ...checked, session, ort }), (one) => one.dispose()),
        ort,
        towerSession,
        projectorSession,
        !structure.classToken || structure.projector?.dropsClassToken === true,
        checked,
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

  get device(): string {
    return this.pruner.device;
  }

  get deviceDescription(): string {
    return this.pruner.deviceDescription;
  }

  protected async encodeText(question: string): Promise<TextEmbeddings> {
    return this.text.encode(checkQuestion(question));
  }

  protected async encodeImages(inputs: VisionInputs | TensorLike, names: InputNames): Promise<LlavaImage[]> {
    const pixels = floatData(names.pixelValues, pixelsOf(inputs));
    const [count, ...extents] = pixels.dims;
    if (pixels.dims.length !== 4 || count < 1)
      throw invalid('ERR_SHAPE', `${names.pixelValues}.dims`, pixels.dims, '[images, 3, H, W]');
    const data = widened(pixels);
    const size = data.length / count;
    const atOnce = count > 1 && (await this.#takesSeveral(extents, names)) ? AT_ONCE : 1;
    const images: LlavaImage[] = [];
    try {
      for (let at = 0; at < count; at += atOnce) {
        const own = Math.min(atOnce, count - at);
        const start = performance.now();
        const batch = await this.#run(data.subarray(at * size, (at + own) * size), [own, ...extents], names);
        const milliseconds = (performance.now() - start) / own;
        for (let i = 0; i < own; i++)
          images.push(new LlavaImage(this, batch, i, { extents, encoding: this.options.encoding, milliseconds }));
      }
      return images;
    } catch (error) {
      for (const image of images) image.dispose();
      throw error;
    }
  }

  /** One run of the tower: hidden states in memory that the pruner reads in place. */
  async #run(pixels: Float32Array, dims: readonly number[], { pixelValues }: InputNames): Promise<TowerBatch> {
    const run = { ...TOWER, argument: pixelValues };
    const feeds = this.#feeds(pixels, dims);
    const size = dims.slice(1).join();
    const known = this.#shapes.get(size);
    const output = known ? null : (await runSession(this.tower, run, feeds))[HIDDEN_STATES];
    const [rows, width] = known ?? [output!.dims[1], output!.dims[2]];
    this.#shapes.set(size, [rows, width]);
    const batch = new TowerBatch([dims[0], rows, width], this.device);
    try {
      // ONNX Runtime writes into a given output only when its own Tensor class holds it.
      const place = new this.ort.Tensor('float32', batch.data, batch.dims);
      if (output) batch.data.set(output.data as Float32Array);
      else await runSession(this.tower, run, feeds, { [HIDDEN_STATES]: place });
      return batch;
    } catch (error) {
      batch.discard();
      throw error;
    }
  }

  #feeds(pixels: Float32Array, dims: readonly number[]): Record<string, Tensor> {
    return { [this.tower.inputNames[0]]: new this.ort.Tensor('float32', pixels, dims) };
  }

  /** Whether the tower computes of two images what it computes of each: exports may have the batch of their trial image in shapes. */
  #takesSeveral(extents: readonly number[], { pixelValues }: InputNames): Promise<boolean> {
    return this.#several.get(async () => {
      if (pixelExtents(this.tower)[0] !== undefined) return false;
      const pixels = waves(2 * extents.reduce((product, extent) => product * extent, 1));
      const second = this.#feeds(pixels.subarray(pixels.length / 2), [1, ...extents]);
      const alone = await runSession(this.tower, { ...TOWER, argument: pixelValues }, second);
      const both = await this.tower.run(this.#feeds(pixels, [2, ...extents]), TENTATIVE).catch(() => null);
      return both !== null && relativeError(lastHalf(both[HIDDEN_STATES]), floats(alone[HIDDEN_STATES])) <= TOLERANCE;
    });
  }

  /**
   * The projector alone.
   * @param rows [K, D] of any selection
   * @returns features [1, K, W]
   */
  async project(rows: TensorLike): Promise<Tensor> {
    return this.life.call(async () => {
      const kept = matrix('rows', rows, { cols: this.pruner.head.width });
      const input = new this.ort.Tensor('float32', widened(kept), [1, kept.rows, kept.cols]);
      return (await runSession(this.projector, PROJECTOR, { [PATCHES]: input }))[IMAGE_FEATURES];
    });
  }

  protected async free(): Promise<void> {
    if (this.ownsPruner) this.pruner.dispose();
    await Promise.all([this.clipText?.dispose(), this.tower.release(), this.projector.release()]);
  }
}

function pixelsOf(inputs: VisionInputs | TensorLike): TensorLike {
  if (typeof inputs !== 'object' || inputs === null || isTensor(inputs)) return inputs;
  return options<Pick<VisionInputs, 'pixelValues'>>('inputs', inputs, { pixelValues: true }).pixelValues as TensorLike;
}

function openText(model: string, given: LlavaVisionOptions & { session: object }): Promise<ClipText> {
  const { clip, longText, session, ort } = given;
  return ClipText.open({ model, tokenizer: clip as string, longText, session, ort });
}
