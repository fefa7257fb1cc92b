import { types } from 'node:util';
import { ABORTABLE, type Abortable } from './abort.js';
import { type AnalyzeRequest, after, type Driver, type DriverHead, type MaybePromise } from './devices/driver.js';
import { type Backend, createBackend } from './devices/kernel-api.js';
import { queued, typed } from './devices/native-error.js';
import { type DeviceOptions, openWith } from './devices/open.js';
import { DISPOSE } from './dispose-symbols.js';
import { DesapError, invalid, mismatch } from './errors.js';
import { checkHead, copyHead, type HeadWeights, loadHead } from './head.js';
import { ImageAnalysis } from './image-analysis.js';
import { ENCODINGS, type Encoding } from './kernels/kernels.js';
import { Lifetime } from './lifetime.js';
import { GivenImage, METHOD_OPTIONS, type MethodOptions } from './method-input.js';
import type { RivalName } from './methods/index.js';
import type { Matrix } from './methods/matrix.js';
import { type Chooser, missing } from './methods/method.js';
import { isRival, rivalOf } from './methods/rival.js';
import { Once } from './once.js';
import { entries, type OptionNames, options } from './options.js';
import {
  isList,
  keepCount,
  PRUNE_OPTIONS,
  type PruneOptions,
  pruneRequest,
  type Text,
  type TextEmbeddings,
  withSharedText,
} from './prune-request.js';
import { inPublicOrder, methodResult, type PruneResult, pruneResult, rowsInOrder } from './prune-result.js';
import { boolean, type FloatMatrix, floatData, matrix, object, oneOf, type TensorLike } from './tensor.js';
import { traced } from './trace.js';

/** Options of {@link Pruner.analyze}. */
export interface AnalyzeOptions {
  /** Operands of the decoupled attention, Table 4(b) of the paper; default `qq`. */
  encoding?: Encoding;
  /** Also keep the attention's context and its projection, [N, D] each; default false. */
  intermediates?: boolean;
}

/** Options of {@link Pruner.prune}: those of DeSAP, or of the method in its place. */
export type OneGoOptions = PruneOptions & Pick<AnalyzeOptions, 'encoding'> & MethodOptions;

/** Options of {@link Pruner.pruneBatch}, the same for each image. */
export type BatchOptions = Omit<OneGoOptions, 'task' | 'saliency' | 'features' | 'taps' | 'projected'>;

/** What only one image can have. */
const OF_ONE_IMAGE = ['task', 'saliency', 'features', 'taps', 'projected'] satisfies Exclude<
  keyof OneGoOptions,
  keyof BatchOptions
>[];

const ANALYZE_OPTIONS: OptionNames<AnalyzeOptions> = { encoding: true, intermediates: true };
const ONE_GO_OPTIONS: OptionNames<OneGoOptions> = { ...PRUNE_OPTIONS, ...METHOD_OPTIONS, encoding: true };

/** Where a head comes from: the path or the bytes of its file, its weights, or who makes them. */
export type HeadSource = string | Uint8Array | ArrayBuffer | HeadWeights | (() => HeadWeights | Promise<HeadWeights>);

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
  readonly #life = new Lifetime('Pruner');
  readonly #driver: Driver;
  readonly #head: DriverHead;
  /** Reads the head's weights again; null where nothing but memory of the caller's has them. */
  readonly #again: (() => Promise<HeadWeights>) | null;
  readonly #weights = new Once<HeadWeights>();

  private constructor(
    driver: Driver,
    driverHead: DriverHead,
    again: (() => Promise<HeadWeights>) | null,
    /** Shape of the head: width D, heads H, projectionDim E, and whether row 0 is the class token. */
    readonly head: Pick<HeadWeights, 'width' | 'heads' | 'projectionDim' | 'classToken'>,
    /** Single kernels on the same device. */
    readonly backend: Backend,
  ) {
    this.#driver = driver;
    this.#head = driverHead;
    this.#again = again;
  }

  /**
   * Loads a head onto a device. Folding and packing its weights takes some tenths of a second, on the device's own threads.
   *
   * @param source path or bytes of a `.safetensors` head (see `desap extract`), the weights themselves, or a function that makes them.
   *   The device has what DeSAP needs of them; a method in its place that reads the weights (`prumerge`, `fastervlm` with `tap: 'last'`,
   *   `trim`, `cdpruner`) has the path read again, or the function called again, when it is first asked for, and then they stay
   * @throws DesapError `ERR_FILE`, `ERR_SHAPE`, `ERR_VALUE`, `ERR_NOT_FINITE` for the head; `ERR_DEVICE_UNAVAILABLE` with the
   *   reason for the device; `ERR_OUT_OF_MEMORY`. A GPU that cannot take the head (heads wider than 128, D or E beyond
   *   16384: `ERR_VALUE`), has no room for it or fails is passed over by the device `auto`
   */
  static async load(source: HeadSource, options: DeviceOptions = {}): Promise<Pruner> {
    const isFile = typeof source === 'string' || types.isUint8Array(source) || types.isAnyArrayBuffer(source);
    const given = headOf(source);
    // Weights are copied before the caller gets to change them.
    const weights = types.isPromise(given) ? await given : (given as HeadWeights);
    const { width, heads, projectionDim, classToken } = weights;
    const { made, driver, fallback } = await openWith(
      'options',
      options,
      (again) => (again && !isFile ? copyHead(weights) : weights),
      (open, head) => typed(() => open.createHead(head)),
    );
    return new Pruner(
      driver,
      made,
      againOf(source),
      { width, heads, projectionDim, classToken },
      createBackend(driver, fallback),
    );
  }

  /**
   * @internal The head's weights, read again by the first who asks.
   * @throws DesapError `ERR_VALUE` where nothing has them; those of reading them
   */
  headWeights(): Promise<HeadWeights> {
    const again = this.#again;
    if (again) return this.#weights.get(async () => sameHead(await again(), this.head));
    throw missing(
      "one that reads the head's weights",
      'a pruner that is loaded from the path of a head file, or from a function that makes its weights',
    );
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
  async analyze(hidden: TensorLike, options: AnalyzeOptions & Abortable = {}): Promise<ImageAnalysis> {
    const images = () => [this.#image('hidden', hidden)];
    const [image] = await this.#analyzeLater('Pruner.analyze', images, options);
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
    options: AnalyzeOptions & Abortable = {},
  ): Promise<ImageAnalysis[]> {
    return this.#analyzeLater('Pruner.analyzeBatch', () => this.#images(hidden), options);
  }

  #analyzeLater(
    call: string,
    images: () => FloatMatrix[],
    given: AnalyzeOptions & Abortable,
  ): Promise<ImageAnalysis[]> {
    const { signal, ...choice } = options('options', given, { ...ANALYZE_OPTIONS, ...ABORTABLE });
    const work = async () => this.#analyze(images(), choice, false);
    return traced(call, () => this.#life.call(work, signal, disposeAll));
  }

  /**
   * Analyses and prunes in one go, which keeps nothing of the image. For several questions on one image,
   * {@link Pruner.analyze} it once. Or keeps what another `method` chooses, which reads what the options of {@link MethodOptions} give it.
   *
   * @param text of a `method` that does not read it: null, or ignored
   * @throws as {@link Pruner.analyze} and {@link ImageAnalysis.prune}; `ERR_VALUE` for what a method reads and was not given, by its name, and
   *   for options that have no part in it
   */
  async prune(hidden: TensorLike, text: Text | null, options: OneGoOptions & Abortable): Promise<PruneResult> {
    const [result] = await this.#pruneLater('Pruner.prune', options, async (choice) =>
      this.#prune([this.#image('hidden', hidden)], text, choice, false),
    );
    return result;
  }

  /** {@link Pruner.prune}, on the calling thread; by DeSAP's own method only. */
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
   * @param options the same for each; a `method` that reads taps or projected features is asked of each image by itself
   * @throws as {@link Pruner.prune}; one bad image fails the call
   */
  async pruneBatch(
    hidden: TensorLike | readonly TensorLike[],
    text: Text | null | readonly Text[],
    options: BatchOptions & Abortable,
  ): Promise<PruneResult[]> {
    return this.#pruneLater('Pruner.pruneBatch', options, async (choice) =>
      this.#pruneBatch(hidden, text, choice, false),
    );
  }

  #pruneLater(
    call: string,
    given: OneGoOptions & Abortable,
    prune: (choice: OneGoOptions) => Promise<PruneResult[]>,
  ): Promise<PruneResult[]> {
    const { signal, ...choice } = options('options', given, { ...ONE_GO_OPTIONS, ...ABORTABLE });
    return traced(call, () => this.#life.call(() => prune(choice), signal));
  }

  /** {@link Pruner.pruneBatch}, on the calling thread; by DeSAP's own method only. */
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
    for (const key of OF_ONE_IMAGE)
      if (choice[key] !== undefined)
        throw mismatch('ERR_VALUE', key, 'one for several images', 'none (prune each image with its own)');
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
    this.#life.check();
    const choice = options('options', given, ONE_GO_OPTIONS);
    const texts = isList(text) ? entries('text', text) : null;
    if (texts !== null && texts.length !== images.length)
      throw mismatch('ERR_SHAPE', 'text', `${texts.length} texts`, `${images.length}, one per image`);
    if (isRival(choice)) return this.#pruneBy(rivalOf(withoutInput(choice)), images, texts ?? text, choice, sync);
    const { classToken, projectionDim } = this.head;
    const requests = images.map(({ rows }, b) => {
      const shape = { patches: rows - Number(classToken), projectionDim };
      return texts === null
        ? pruneRequest('text', text as Text | null, choice, shape)
        : pruneRequest(`text[${b}]`, texts[b], choice, shape);
    });
    const outputs = queued(this.#driver, () =>
      this.#head.prune(images, { encoding: encodingOf(choice) }, requests, sync),
    );
    return after(outputs, (all) => all.map((output, b) => pruneResult(output, requests[b])));
  }

  /** What another method than DeSAP's own keeps of each image. */
  #pruneBy(
    chooser: Chooser,
    images: readonly FloatMatrix[],
    text: Text | null | readonly Text[],
    given: OneGoOptions,
    sync: boolean,
  ): Promise<PruneResult[]> {
    if (sync)
      throw invalid(
        'ERR_VALUE',
        'method',
        given.method,
        "'desap': others are asked by prune and pruneBatch, without Sync",
      );
    const { backend, head } = this;
    const owner = {
      ...{ backend, head, headWeights: () => this.headWeights() },
      taskMap: (hidden: Matrix, asked: TextEmbeddings) => this.#taskMap(hidden, asked),
    };
    const one = (name: string, b: number) => (images.length > 1 ? `${name}[${b}]` : name);
    const asked = images.map((hidden, b) => {
      const patches = hidden.rows - Number(head.classToken);
      const question = isList(text) ? { argument: `text[${b}]`, text: text[b] } : { argument: 'text', text };
      return {
        image: new GivenImage(owner, chooser, { argument: one('hidden', b), hidden }, question, given),
        keep: chooser.isAdaptive ? patches : keepCount(given, patches),
        isHalf: hidden.half,
      };
    });
    return this.#life.call(async () => {
      const results: PruneResult[] = [];
      for (const { image, keep, isHalf } of asked) {
        for (const tap of chooser.taps) await image.tap(tap);
        const start = performance.now();
        const choice = await chooser.choose(image, keep);
        const merge = image.watch.spent('merge');
        const kept = methodResult(choice, { select: performance.now() - start - merge, merge }, isHalf);
        const { tokens } = kept;
        const isPublic = given.layout === 'public';
        results.push(isPublic ? { ...inPublicOrder(kept, choice), tokens: rowsInOrder(tokens, choice.order) } : kept);
      }
      return results;
    });
  }

  /** The task map of hidden states with the alignment `mean`, [P]. */
  async #taskMap(hidden: Matrix, text: TextEmbeddings): Promise<Float32Array> {
    const { classToken, projectionDim } = this.head;
    const how = { keep: 1, taskShare: 1, alignment: 'mean', merge: false, maps: true } as const;
    const request = pruneRequest('text', text, how, { patches: hidden.rows - Number(classToken), projectionDim });
    const image = { ...hidden, half: false };
    const [{ maps }] = await queued(this.#driver, () =>
      this.#head.prune([image], { encoding: 'qq' }, [request], false),
    );
    return maps?.task as Float32Array;
  }

  #analyze(images: readonly FloatMatrix[], given: AnalyzeOptions, sync: boolean): MaybePromise<ImageAnalysis[]> {
    this.#life.check();
    const choice = options('options', given, ANALYZE_OPTIONS);
    const request: AnalyzeRequest = {
      encoding: encodingOf(choice),
      intermediates: boolean('intermediates', choice.intermediates ?? false),
    };
    const analyses = queued(this.#driver, () => this.#head.analyze(images, request, sync));
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
    this.#life.end(() => {
      this.#head.dispose();
      this.#driver.dispose();
    });
  }

  [DISPOSE](): void {
    this.dispose();
  }
}

function disposeAll(analyses: readonly ImageAnalysis[]): void {
  for (const analysis of analyses) analysis.dispose();
}

/** @throws DesapError `ERR_VALUE` */
export function encodingOf({ encoding = 'qq' }: AnalyzeOptions): Encoding {
  return oneOf('encoding', encoding, ENCODINGS);
}

function headOf(source: HeadSource): MaybePromise<HeadWeights> {
  if (typeof source === 'string' || types.isUint8Array(source) || types.isAnyArrayBuffer(source))
    return loadHead(source);
  const wanted = "a head: its file's path or bytes, its weights, or a function that makes them";
  if (typeof source !== 'function') return checkHead(object('source', source, wanted));
  return Promise.resolve(source()).then((weights) => checkHead(object('source', weights, wanted)));
}

/** Reads a head again; null where that would hold memory of the caller's. What is returned holds nothing but the source. */
function againOf(source: HeadSource): (() => Promise<HeadWeights>) | null {
  if (typeof source !== 'string' && typeof source !== 'function') return null;
  return async () => headOf(source);
}

/** @throws DesapError `ERR_HEAD_MISMATCH` for a source that has another head now */
function sameHead(weights: HeadWeights, { width, heads, projectionDim, classToken }: Pruner['head']): HeadWeights {
  const shape = (head: Pruner['head']) =>
    `width ${head.width}, ${head.heads} heads, projectionDim ${head.projectionDim}, classToken ${head.classToken}`;
  const loaded = shape({ width, heads, projectionDim, classToken });
  if (shape(weights) === loaded) return weights;
  throw new DesapError(
    'ERR_HEAD_MISMATCH',
    `source: got a head of ${shape(weights)}, wanted ${loaded}, as it was loaded`,
  );
}

/** The options that a method's own say about, without what it reads. */
function withoutInput({ taps: _, projected: __, grid: ___, ...choice }: OneGoOptions & { method: RivalName }) {
  return choice;
}
