import { types } from 'node:util';
import type {
  AnalyzeTimings,
  Driver,
  DriverAnalysis,
  DriverHead,
  MaybePromise,
  PruneAllOutput,
  PruneOutput,
  PruneRequest,
  PruneTimings,
} from './devices/driver.js';
import { type Backend, createBackend } from './devices/kernel-api.js';
import { type DeviceOptions, openDevice } from './devices/open.js';
import { DISPOSE } from './dispose-symbols.js';
import { type DesapError, invalid, mismatch, notFinite } from './errors.js';
import { checkHead, type HeadWeights, loadHead } from './head.js';
import { ALIGNMENTS, type Alignment, ENCODINGS, type Encoding } from './kernels/kernels.js';
import {
  assertAlive,
  type FloatMatrix,
  finite,
  float32,
  floatData,
  integer,
  matrix,
  object,
  oneOf,
  Tensor,
  type TensorLike,
  vector,
  widened,
} from './tensor.js';

export type { AnalyzeTimings, PruneTimings };

/** Options of {@link Pruner.analyze}. */
export interface AnalyzeOptions {
  /** Operands of the decoupled attention, Table 4(b) of the paper; default `qq`. */
  encoding?: Encoding;
  /** Also keep the attention's context and its projection, [N, D] each; default false. */
  intermediates?: boolean;
}

/** Embeddings of a text's tokens in the space that it shares with the image: S of the paper, before L2 normalisation, no padding. */
export interface TextEmbeddings {
  /** [T, E] (or [1, T, E]). */
  readonly embeddings: TensorLike;
  /** Row of the end-of-text token, or that vector itself [E]; default: the last row. */
  readonly endOfText?: number | Float32Array;
}

type Text = TensorLike | TextEmbeddings;

/** Options of {@link ImageAnalysis.prune}. */
export interface PruneOptions {
  /** K: how many visual tokens to keep. A number below 1 is a fraction of P (rounded half up, at least 1), others are counts. */
  keep: number;
  /** Share of K that the task map chooses; the saliency map chooses the rest. From 0 to 1, default 0.5. */
  taskShare?: number;
  /** How text and image are matched; default `fcma` (eq. 3 as printed). docs/accuracy.md tells what each was measured to cost. */
  alignment?: Alignment;
  /** lambda of eq. 3; default 0.1, at most 1e6 in magnitude. */
  lambda?: number;
  /** false returns the kept tokens as they are instead of merging the others into them; default true. */
  merge?: boolean;
  /** A saliency map [P] in place of the analysis' own, for example of another layer. */
  saliency?: Float32Array | TensorLike;
  /** [P, F] rows to merge in place of the hidden states, for example projected features. */
  features?: TensorLike;
  /** Return both maps; default false. */
  maps?: boolean;
  /** Return the matrices of eq. 3; default false. */
  matrices?: boolean;
}

/** Options of {@link Pruner.pruneBatch}, the same for each image. */
export type BatchOptions = Omit<PruneOptions, 'saliency' | 'features'> & AnalyzeOptions;

/** What was kept of one image for one question. K kept tokens, P patches, T text tokens, D width. */
export interface PruneResult {
  /** [K, D] (or [K, F] for own features), float32 or float16 as the features were. An input of the next session as it is. */
  readonly tokens: Tensor;
  /** [K] patch of each token, ascending. */
  readonly indices: Int32Array;
  /** [K] which map chose it: 0 task, 1 saliency. */
  readonly source: Uint8Array;
  /** [P] the position in `indices` of the token that each patch went into; -1 for dropped patches when merging is off. */
  readonly assignment: Int32Array;
  /** [K] how many patches are in each token. */
  readonly counts: Int32Array;
  /** A_t and A_s, [P] each; with `maps`. */
  readonly maps?: { readonly task: Float32Array; readonly saliency: Float32Array };
  /** m, M_V and M_T of eq. 3, [P, T] each (the last two null for the alignment `mean`); with `matrices`. */
  readonly matrices?: {
    readonly similarity: Tensor;
    readonly visualAlignment: Tensor | null;
    readonly textAlignment: Tensor | null;
  };
  /** Milliseconds per stage, of the question and of the image that it was asked about. */
  readonly timings: AnalyzeTimings & PruneTimings;
}

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

  private constructor(
    private readonly driver: Driver,
    private readonly driverHead: DriverHead,
    /** Shape of the head: width D, heads H, embedding E, and whether row 0 is the class token. */
    readonly head: Pick<HeadWeights, 'width' | 'heads' | 'embedding' | 'classToken'>,
    /** Single kernels on the same device. */
    readonly backend: Backend,
  ) {}

  /**
   * Loads a head onto a device. Folding and packing its weights takes some tenths of a second, on the device's own threads.
   *
   * @param source path or bytes of a `.safetensors` head (see `desap extract`), or the weights themselves
   * @throws DesapError `ERR_FILE`, `ERR_SHAPE`, `ERR_VALUE`, `ERR_NOT_FINITE` for the head; `ERR_DEVICE_UNAVAILABLE` with the
   *   reason for the device; `ERR_OUT_OF_MEMORY`. A card that cannot take the head (heads wider than 128: `ERR_VALUE`), has no
   *   room for it or fails is passed over by the device `auto`
   */
  static async load(
    source: string | Uint8Array | ArrayBuffer | HeadWeights,
    options: DeviceOptions = {},
  ): Promise<Pruner> {
    const isFile = typeof source === 'string' || types.isUint8Array(source) || types.isAnyArrayBuffer(source);
    const weights = isFile ? await loadHead(source) : checkHead(source);
    const { width, heads, embedding, classToken } = weights;
    let device = openDevice(options);
    for (;;) {
      const { driver, fallback } = device;
      try {
        const head = await driver.createHead(weights);
        return new Pruner(driver, head, { width, heads, embedding, classToken }, createBackend(driver, fallback));
      } catch (error) {
        device = device.instead(error);
      }
    }
  }

  /** The device in words; `fallback` of {@link Pruner.backend} says why `auto` took it. */
  get device(): string {
    return this.driver.description;
  }

  /** Arithmetic of the matrix products: `float64` (reference), `float32` (CPU), or what a card was asked for. */
  get precision(): Backend['precision'] {
    return this.driver.precision;
  }

  /**
   * The part that no question changes: attention, embedding and saliency of one image (steps 1 to 4 and 7).
   *
   * @param hidden hidden states that enter the encoder's last layer, [N, D] or [1, N, D], float32 or float16. Memory of a
   *   `HostBuffer` is read in place, now and whenever the analysis merges; other memory is copied first.
   * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DETACHED`, `ERR_NOT_FINITE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`; on a card
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
  async prune(hidden: TensorLike, text: Text, options: PruneOptions & AnalyzeOptions): Promise<PruneResult> {
    const [result] = await this.#prune([this.#image('hidden', hidden)], text, options, false);
    return result;
  }

  /** {@link Pruner.prune}, on the calling thread. */
  pruneSync(hidden: TensorLike, text: Text, options: PruneOptions & AnalyzeOptions): PruneResult {
    const [result] = this.#prune([this.#image('hidden', hidden)], text, options, true) as PruneResult[];
    return result;
  }

  /**
   * {@link Pruner.prune} for several images in one go: the tiles of a picture, the frames of a film, the pictures of a prompt.
   * Each result is what `prune` gives for that image alone, to the bit.
   *
   * @param hidden a tensor [B, N, D], or a list of [N, D] tensors that may differ in N
   * @param text one for all images, or a list with one per image
   * @throws as {@link Pruner.prune}; one bad image fails the call
   */
  async pruneBatch(
    hidden: TensorLike | readonly TensorLike[],
    text: Text | readonly Text[],
    options: BatchOptions,
  ): Promise<PruneResult[]> {
    return this.#pruneBatch(hidden, text, options, false);
  }

  /** {@link Pruner.pruneBatch}, on the calling thread. */
  pruneBatchSync(
    hidden: TensorLike | readonly TensorLike[],
    text: Text | readonly Text[],
    options: BatchOptions,
  ): PruneResult[] {
    return this.#pruneBatch(hidden, text, options, true) as PruneResult[];
  }

  #pruneBatch(
    hidden: TensorLike | readonly TensorLike[],
    text: Text | readonly Text[],
    options: BatchOptions,
    sync: boolean,
  ): MaybePromise<PruneResult[]> {
    for (const key of ['saliency', 'features'] as const)
      if (options && (options as PruneOptions)[key] !== undefined)
        throw mismatch(
          'ERR_VALUE',
          key,
          'one for several images',
          'none (analyze the images, and prune each with its own)',
        );
    const images = this.#images(hidden);
    if (isList(text)) return this.#prune(images, text, options, sync);
    const renamed = (error: unknown) => {
      throw ofSharedText(error);
    };
    try {
      const results = this.#prune(images, text, options, sync);
      return types.isPromise(results) ? results.catch(renamed) : results;
    } catch (error) {
      return renamed(error);
    }
  }

  #prune(
    images: readonly FloatMatrix[],
    text: Text | readonly Text[],
    options: PruneOptions & AnalyzeOptions,
    sync: boolean,
  ): MaybePromise<PruneResult[]> {
    assertAlive('Pruner', this.#alive);
    if (isList(text) && text.length !== images.length)
      throw mismatch('ERR_SHAPE', 'text', `${text.length} texts`, `${images.length}, one per image`);
    const shapes = images.map(({ rows, cols }) => ({
      patches: rows - Number(this.head.classToken),
      width: cols,
      embedding: this.head.embedding,
    }));
    const requests = shapes.map((shape, b) =>
      isList(text) ? pruneRequest(`text[${b}]`, text[b], options, shape) : pruneRequest('text', text, options, shape),
    );
    const encoding = oneOf('encoding', options.encoding ?? 'qq', ENCODINGS);
    const wrap = (outputs: PruneAllOutput[]) =>
      outputs.map((output, b) =>
        pruneResult(output, requests[b], options, shapes[b], output.timings, () => output.saliency as Float32Array),
      );
    const maps = Boolean(options.maps) && options.saliency === undefined;
    const outputs = this.driverHead.prune(images, requests, { encoding, maps }, sync);
    return types.isPromise(outputs) ? outputs.then(wrap) : wrap(outputs);
  }

  #analyze(images: readonly FloatMatrix[], options: AnalyzeOptions, sync: boolean): MaybePromise<ImageAnalysis[]> {
    assertAlive('Pruner', this.#alive);
    const encoding = oneOf('encoding', object('options', options).encoding ?? 'qq', ENCODINGS);
    const wrap = (analyses: DriverAnalysis[]) => analyses.map((analysis) => new ImageAnalysis(analysis, this.head));
    const result = this.driverHead.analyze(images, { encoding, intermediates: options.intermediates ?? false }, sync);
    return types.isPromise(result) ? result.then(wrap) : wrap(result);
  }

  #images(hidden: TensorLike | readonly TensorLike[]): FloatMatrix[] {
    return isList(hidden) ? hidden.map((one, b) => this.#image(`hidden[${b}]`, one)) : this.#split(hidden);
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
    this.driverHead.dispose();
    this.driver.dispose();
  }

  [DISPOSE](): void {
    this.dispose();
  }
}

/** One image's part of the computation, kept on the device; made by {@link Pruner.analyze}. */
export class ImageAnalysis implements Disposable {
  #alive = true;

  /** @internal */
  constructor(
    private readonly analysis: DriverAnalysis,
    private readonly head: Pruner['head'],
  ) {}

  /** N, rows of the hidden states. */
  get tokens(): number {
    return this.analysis.tokens;
  }
  /** P, patches: N without the class token. */
  get patches(): number {
    return this.analysis.patches;
  }
  /** Milliseconds per stage. */
  get timings(): AnalyzeTimings {
    return this.analysis.timings;
  }
  /** Address of the hidden states that the kernels read and merging will read: a `HostBuffer`'s own when it was given one. */
  get featuresAddress(): bigint {
    return this.analysis.featuresAddress;
  }
  /** A_d of the paper: unit rows [N, E]. A copy. */
  embedding(): Tensor {
    return float32(this.#use().embedding(), [this.tokens, this.head.embedding]);
  }
  /** A_s of the paper, [P]. A copy. */
  saliency(): Float32Array {
    return this.#use().saliency();
  }
  /** Context and projected attention [N, D] each (step 2), when `intermediates` asked for them. */
  intermediates(): { context: Tensor; attention: Tensor } | null {
    const kept = this.#use().intermediates();
    const tensor = (data: Float32Array) => float32(data, [this.tokens, this.head.width]);
    return kept && { context: tensor(kept.context), attention: tensor(kept.attention) };
  }

  /**
   * Keeps K visual tokens for a question (steps 5, 6, 8 and 9): those that the text is about and those that stand out,
   * with every other patch merged into the nearest of them.
   *
   * @param text S of the paper, [T, E]: the question's tokens in the shared space, not normalised, without padding
   * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE` (keep, taskShare, endOfText, ...), `ERR_NOT_FINITE` (text, saliency,
   *   features), `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`
   */
  async prune(text: Text, options: PruneOptions): Promise<PruneResult> {
    const request = this.#request(text, options);
    return this.#result(await this.#use().prune(request, false), request, options);
  }

  /** {@link ImageAnalysis.prune}, on the calling thread. */
  pruneSync(text: Text, options: PruneOptions): PruneResult {
    const request = this.#request(text, options);
    return this.#result(this.#use().prune(request, true) as PruneOutput, request, options);
  }

  #use(): DriverAnalysis {
    assertAlive('ImageAnalysis', this.#alive);
    return this.analysis;
  }

  #request(text: Text, options: PruneOptions): PruneRequest {
    return pruneRequest('text', text, options, { patches: this.patches, embedding: this.head.embedding });
  }

  #result(output: PruneOutput, request: PruneRequest, options: PruneOptions): PruneResult {
    const timings = { ...this.analysis.timings, ...output.timings };
    return pruneResult(output, request, options, this.analysis, timings, () => this.analysis.saliency());
  }

  /** Frees the analysis, and lets go of the `HostBuffer` that it reads. A pruning in flight ends first. */
  dispose(): void {
    if (!this.#alive) return;
    this.#alive = false;
    this.analysis.dispose();
  }

  [DISPOSE](): void {
    this.dispose();
  }
}

function pruneRequest(
  argument: string,
  text: Text,
  options: PruneOptions,
  { patches, embedding }: { patches: number; embedding: number },
): PruneRequest {
  object('options', options, 'an object with keep');
  const given: TextEmbeddings = isTextEmbeddings(text) ? text : { embeddings: text };
  const tokens = singlePrecision(matrix(argument, given.embeddings, { cols: embedding }));
  const end = given.endOfText ?? tokens.rows - 1;
  const keep = keepCount(options.keep, patches);
  const taskShare = finite('taskShare', options.taskShare ?? 0.5, 0, 1);
  return {
    text: tokens,
    query: typeof end === 'number' ? null : vector('endOfText', end, embedding),
    endOfText: typeof end === 'number' ? integer('endOfText', end, 0, tokens.rows - 1) : -1,
    keep,
    taskKeep: Math.floor(keep * taskShare + 0.5),
    alignment: oneOf('alignment', options.alignment ?? 'fcma', ALIGNMENTS),
    lambda: finite('lambda', options.lambda ?? 0.1, -1e6, 1e6),
    saliency: options.saliency === undefined ? null : vector('saliency', options.saliency, patches),
    merge: options.merge ?? true,
    features: options.features === undefined ? null : matrix('features', options.features, { rows: patches }),
    matrices: options.matrices ?? false,
  };
}

function pruneResult(
  output: PruneOutput,
  request: PruneRequest,
  options: PruneOptions,
  { patches, width }: { patches: number; width: number },
  timings: PruneResult['timings'],
  saliency: () => Float32Array,
): PruneResult {
  const { indices, source, assignment, counts, matrices } = output;
  const shape = [request.keep, request.features?.cols ?? width];
  const tensor = (data: Float32Array) => float32(data, [patches, request.text.rows]);
  return {
    tokens: types.isFloat32Array(output.tokens)
      ? float32(output.tokens, shape)
      : new Tensor('float16', output.tokens, shape),
    indices,
    source,
    assignment,
    counts,
    ...(options.maps && { maps: { task: output.task, saliency: request.saliency?.slice() ?? saliency() } }),
    ...(matrices && {
      matrices: {
        similarity: tensor(matrices.similarity),
        visualAlignment: matrices.visualAlignment && tensor(matrices.visualAlignment),
        textAlignment: matrices.textAlignment && tensor(matrices.textAlignment),
      },
    }),
    timings,
  };
}

/** One text for all images: what is wrong with it is wrong for no image in particular. */
function ofSharedText(error: unknown): unknown {
  const { argument, row } = error as DesapError & { argument?: string; row?: number };
  return (argument === 'text' || argument === 'query') && row !== undefined ? notFinite(argument, row) : error;
}

function isList<T>(given: T | readonly T[]): given is readonly T[] {
  return Array.isArray(given);
}

function isTextEmbeddings(text: Text): text is TextEmbeddings {
  return typeof text === 'object' && text !== null && 'embeddings' in text;
}

/** K of P: a fraction below 1 is rounded half up, at least one token. */
function keepCount(keep: number, patches: number): number {
  if (typeof keep === 'number' && keep > 0 && keep < 1) return Math.max(1, Math.floor(keep * patches + 0.5));
  if (!Number.isInteger(keep) || keep < 1 || keep > patches)
    throw invalid('ERR_VALUE', 'keep', keep, `a count from 1 to ${patches}, or a fraction between 0 and 1`);
  return keep;
}

function singlePrecision(x: FloatMatrix): FloatMatrix {
  return x.half ? { ...x, data: widened(x), half: false } : x;
}
