import { types } from 'node:util';
import { type AnalyzeRequest, after, type Driver, type DriverHead, type MaybePromise } from './devices/driver.js';
import { type Backend, createBackend } from './devices/kernel-api.js';
import { typed } from './devices/native-error.js';
import { type DeviceOptions, openWith } from './devices/open.js';
import { DISPOSE } from './dispose-symbols.js';
import { invalid, mismatch } from './errors.js';
import { checkHead, copyHead, type HeadWeights, loadHead } from './head.js';
import { ImageAnalysis } from './image-analysis.js';
import { ENCODINGS, type Encoding } from './kernels/kernels.js';
import { entries, type OptionNames, options } from './options.js';
import { isList, PRUNE_OPTIONS, type PruneOptions, pruneRequest, type Text, withSharedText } from './prune-request.js';
import { type PruneResult, pruneResult } from './prune-result.js';
import { assertAlive, boolean, type FloatMatrix, floatData, matrix, object, oneOf, type TensorLike } from './tensor.js';

/** Options of {@link Pruner.analyze}. */
export interface AnalyzeOptions {
  /** Operands of the decoupled attention, Table 4(b) of the paper; default `qq`. */
  encoding?: Encoding;
  /** Also keep the attention's context and its projection, [N, D] each; default false. */
  intermediates?: boolean;
}

/** Options of {@link Pruner.prune}. */
export type OneGoOptions = PruneOptions & Pick<AnalyzeOptions, 'encoding'>;

/** Options of {@link Pruner.pruneBatch}, the same for each image. */
export type BatchOptions = Omit<OneGoOptions, 'task' | 'saliency' | 'features'>;

const ANALYZE_OPTIONS: OptionNames<AnalyzeOptions> = { encoding: true, intermediates: true };
const ONE_GO_OPTIONS: OptionNames<OneGoOptions> = { ...PRUNE_OPTIONS, encoding: true };

/**
 * The pruning head of one encoder on one device (DeSAP, arXiv 2604.11240).
 *
 * ```ts
 * using pruner = await Pruner.load('clip-vit-large-patch14-336.head.safetensors');
 * using image = await pruner.analyze(hiddenStates);            // what no question changes
 * const { tokens, indices } = await image.prune(text, { keep: 64 });
 * ```
 */
export class Pruner implements Disposable {
  #alive = true;

  readonly #driver: Driver;
  readonly #head: DriverHead;

  private constructor(
    driver: Driver,
    driverHead: DriverHead,
    /** Shape of the head: width D, heads H, projectionDim E, and whether row 0 is the class token. */
    readonly head: Pick<HeadWeights, 'width' | 'heads' | 'projectionDim' | 'classToken'>,
    /** Single kernels on the same device. */
    readonly backend: Backend,
  ) {
    this.#driver = driver;
    this.#head = driverHead;
  }

  /**
   * Loads a head onto a device. Folding and packing its weights takes some tenths of a second, on the device's own threads.
   *
   * @param source path or bytes of a `.safetensors` head (see `desap extract`), or the weights themselves
   * @throws DesapError `ERR_FILE`, `ERR_SHAPE`, `ERR_VALUE`, `ERR_NOT_FINITE` for the head; `ERR_DEVICE_UNAVAILABLE` with the
   *   reason for the device; `ERR_OUT_OF_MEMORY`. A GPU that cannot take the head (heads wider than 128, D or E beyond
   *   16384: `ERR_VALUE`), has no room for it or fails is passed over by the device `auto`
   */
  static async load(
    source: string | Uint8Array | ArrayBuffer | HeadWeights,
    options: DeviceOptions = {},
  ): Promise<Pruner> {
    const isFile = typeof source === 'string' || types.isUint8Array(source) || types.isAnyArrayBuffer(source);
    const weights = isFile
      ? await loadHead(source)
      : checkHead(object('source', source, "a head: its file's path or bytes, or its weights"));
    const { width, heads, projectionDim, classToken } = weights;
    const { made, driver, fallback } = await openWith(
      'options',
      options,
      (again) => (again && !isFile ? copyHead(weights) : weights),
      (open, head) => typed(() => open.createHead(head)),
    );
    return new Pruner(driver, made, { width, heads, projectionDim, classToken }, createBackend(driver, fallback));
  }

  /** `cpu`, `cuda:0`, `reference`. `fallback` of {@link Pruner.backend} says why `auto` took it. */
  get device(): string {
    return this.#driver.device;
  }

  /** The device in words: instruction set and threads, or the GPU. */
  get deviceDescription(): string {
    return this.#driver.deviceDescription;
  }

  /** Arithmetic of the matrix products: `fp32`, or the coarser one that was accepted and is used. The reference says `fp32`. */
  get precision(): Backend['precision'] {
    return this.#driver.precision;
  }

  /**
   * The part that no question changes: layer norm, projections, attention (eq. 2), read-out and saliency (eq. 4) of one image.
   *
   * @param hidden hidden states that enter the encoder's last layer, [N, D] or [1, N, D], float32 or float16. Memory of a
   *   `HostBuffer` is read in place, now and whenever the analysis merges; other memory is copied first.
   * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DETACHED`, `ERR_NOT_FINITE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`; on a GPU
   *   `ERR_DEVICE_FAILED`, `ERR_DEVICE_LOST`
   */
  async analyze(hidden: TensorLike, options: AnalyzeOptions = {}): Promise<ImageAnalysis> {
    const [image] = await this.#analyze([this.#image('hidden', hidden)], options, false);
    return image;
  }

  /** {@link Pruner.analyze}, on the calling thread; the kernels read any memory in place. */
  analyzeSync(hidden: TensorLike, options: AnalyzeOptions = {}): ImageAnalysis {
    const [image] = this.#analyze([this.#image('hidden', hidden)], options, true) as ImageAnalysis[];
    return image;
  }

  /**
   * Several images in one call: a tensor [B, N, D], or a list of [N, D] tensors that may differ in N.
   * @throws as {@link Pruner.analyze}; one bad image fails the call
   */
  async analyzeBatch(
    hidden: TensorLike | readonly TensorLike[],
    options: AnalyzeOptions = {},
  ): Promise<ImageAnalysis[]> {
    return this.#analyze(this.#images(hidden), options, false);
  }

  /**
   * Analyses and prunes in one go, which keeps nothing of the image. For several questions on one image,
   * {@link Pruner.analyze} it once.
   * @throws as {@link Pruner.analyze} and {@link ImageAnalysis.prune}
   */
  async prune(hidden: TensorLike, text: Text | null, options: OneGoOptions): Promise<PruneResult> {
    const [result] = await this.#prune([this.#image('hidden', hidden)], text, options, false);
    return result;
  }

  /** {@link Pruner.prune}, on the calling thread. */
  pruneSync(hidden: TensorLike, text: Text | null, options: OneGoOptions): PruneResult {
    const [result] = this.#prune([this.#image('hidden', hidden)], text, options, true) as PruneResult[];
    return result;
  }

  /**
   * {@link Pruner.prune} for several images in one go: the tiles of an image, the frames of a video, the images of a prompt.
   * Each result is what `prune` gives for that image alone, to the bit.
   *
   * @param hidden a tensor [B, N, D], or a list of [N, D] tensors that may differ in N
   * @param text one for all images, or a list with one per image
   * @throws as {@link Pruner.prune}; one bad image fails the call
   */
  async pruneBatch(
    hidden: TensorLike | readonly TensorLike[],
    text: Text | null | readonly Text[],
    options: BatchOptions,
  ): Promise<PruneResult[]> {
    return this.#pruneBatch(hidden, text, options, false);
  }

  /** {@link Pruner.pruneBatch}, on the calling thread. */
  pruneBatchSync(
    hidden: TensorLike | readonly TensorLike[],
    text: Text | null | readonly Text[],
    options: BatchOptions,
  ): PruneResult[] {
    return this.#pruneBatch(hidden, text, options, true) as PruneResult[];
  }

  #pruneBatch(
    hidden: TensorLike | readonly TensorLike[],
    text: Text | null | readonly Text[],
    given: BatchOptions,
    sync: boolean,
  ): MaybePromise<PruneResult[]> {
    const choice: OneGoOptions = options('options', given, ONE_GO_OPTIONS);
    for (const key of ['task', 'saliency', 'features'] as const)
      if (choice[key] !== undefined)
        throw mismatch(
          'ERR_VALUE',
          key,
          'one for several images',
          'none (analyze the images, and prune each with its own)',
        );
    const images = this.#images(hidden);
    const prune = () => this.#prune(images, text, choice, sync);
    return isList(text) ? prune() : withSharedText(prune);
  }

  #prune(
    images: readonly FloatMatrix[],
    text: Text | null | readonly Text[],
    given: OneGoOptions,
    sync: boolean,
  ): MaybePromise<PruneResult[]> {
    assertAlive('Pruner', this.#alive);
    const choice = options('options', given, ONE_GO_OPTIONS);
    const texts = isList(text) ? entries('text', text) : null;
    if (texts !== null && texts.length !== images.length)
      throw mismatch('ERR_SHAPE', 'text', `${texts.length} texts`, `${images.length}, one per image`);
    const { classToken, projectionDim } = this.head;
    const requests = images.map(({ rows }, b) => {
      const shape = { patches: rows - Number(classToken), projectionDim };
      return texts === null
        ? pruneRequest('text', text as Text | null, choice, shape)
        : pruneRequest(`text[${b}]`, texts[b], choice, shape);
    });
    const outputs = typed(() => this.#head.prune(images, { encoding: encodingOf(choice) }, requests, sync));
    return after(outputs, (all) => all.map((output, b) => pruneResult(output, requests[b])));
  }

  #analyze(images: readonly FloatMatrix[], given: AnalyzeOptions, sync: boolean): MaybePromise<ImageAnalysis[]> {
    assertAlive('Pruner', this.#alive);
    const choice = options('options', given, ANALYZE_OPTIONS);
    const request: AnalyzeRequest = {
      encoding: encodingOf(choice),
      intermediates: boolean('intermediates', choice.intermediates ?? false),
    };
    const analyses = typed(() => this.#head.analyze(images, request, sync));
    return after(analyses, (all) => all.map((analysis) => new ImageAnalysis(analysis, this.#driver, false)));
  }

  #images(hidden: TensorLike | readonly TensorLike[]): FloatMatrix[] {
    return isList(hidden)
      ? entries('hidden', hidden).map((one, b) => this.#image(`hidden[${b}]`, one))
      : this.#split(hidden);
  }

  #image(argument: string, hidden: TensorLike): FloatMatrix {
    return this.#withPatches(argument, matrix(argument, hidden, { cols: this.head.width }));
  }

  #split(hidden: TensorLike): FloatMatrix[] {
    const { data, half, dims } = floatData('hidden', hidden);
    const [batch, rows, cols] = dims;
    if (dims.length !== 3 || cols !== this.head.width)
      throw invalid('ERR_SHAPE', 'hidden.dims', dims, `[B, N, ${this.head.width}]`);
    const size = rows * cols;
    return Array.from({ length: batch }, (_, b) =>
      this.#withPatches('hidden', { data: data.subarray(b * size, (b + 1) * size), half, rows, cols }),
    );
  }

  #withPatches(argument: string, hidden: FloatMatrix): FloatMatrix {
    if (hidden.rows > Number(this.head.classToken)) return hidden;
    throw invalid(
      'ERR_SHAPE',
      `${argument}.dims`,
      [hidden.rows, hidden.cols],
      'the class token and at least one patch',
    );
  }

  /** Frees the head and the device's threads and memory. Work in flight ends first; its analyses prune no more. */
  dispose(): void {
    if (!this.#alive) return;
    this.#alive = false;
    this.#head.dispose();
    this.#driver.dispose();
  }

  [DISPOSE](): void {
    this.dispose();
  }
}

/** @throws DesapError `ERR_VALUE` */
export function encodingOf({ encoding = 'qq' }: AnalyzeOptions): Encoding {
  return oneOf('encoding', encoding, ENCODINGS);
}
