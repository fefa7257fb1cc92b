import { ABORTABLE, type Abortable, abortable, signalOf } from './abort.js';
import type { AnalyzeTimings, Driver, DriverAnalysis, DriverParts, MaybePromise } from './devices/driver.js';
import { after } from './devices/driver.js';
import { type Backend, driverOf } from './devices/kernel-api.js';
import { queued, typed } from './devices/native-error.js';
import { type DeviceOptions, openWith } from './devices/open.js';
import { DISPOSE } from './dispose-symbols.js';
import { invalid, mismatch } from './errors.js';
import { readInPlace } from './host-buffer.js';
import { entries, isOf, type OptionNames, options } from './options.js';
import { isList, PRUNE_OPTIONS, type PruneOptions, pruneRequest, type Text, withSharedText } from './prune-request.js';
import { type PruneResult, pruneResult } from './prune-result.js';
import { assertAlive, type FloatMatrix, float32, matrix, type Tensor, type TensorLike, vector } from './tensor.js';
import { traced } from './trace.js';

/** What another encoder says of an image. P patches, E the width that image and text share, F the width of the features. */
export interface AnalysisParts {
  /** [P, E], a row for each patch in the text's space; made unit rows. float32 or float16. */
  readonly patchEmbeddings: TensorLike;
  /** [E], the whole image in that space, made a unit row; default: the normalised mean of the unit patch embeddings. */
  readonly global?: Float32Array | TensorLike;
  /** [P], how much each patch stands out. */
  readonly saliency: Float32Array | TensorLike;
  /** [P, F], the rows that are merged, float32 or float16. Memory of a `HostBuffer` is read in place whenever they are. */
  readonly features: TensorLike;
}

const PARTS: OptionNames<AnalysisParts> = { patchEmbeddings: true, global: true, saliency: true, features: true };

/** What is known of one image before it is asked about, kept on a device; made by {@link Pruner.analyze}, or from parts. */
export class ImageAnalysis implements Disposable {
  #alive = true;
  readonly #analysis: DriverAnalysis;
  // Always held: a device that nobody holds is collected, and prunes no more.
  readonly #device: Driver;
  readonly #ownsDevice: boolean;

  /** @internal `ownsDevice`: the device belongs to the analysis alone, and is freed with it */
  constructor(analysis: DriverAnalysis, device: Driver, ownsDevice: boolean) {
    this.#analysis = analysis;
    this.#device = device;
    this.#ownsDevice = ownsDevice;
  }

  /**
   * An analysis from rows that another encoder made: what follows is the same as for a head's own.
   *
   * @param where an open device (`openBackend`, or `backend` of a pruner), or the options of one that the analysis opens for
   *   itself, and frees with itself
   * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_DETACHED`, `ERR_NOT_FINITE` for the parts; for the device those of
   *   `openBackend`; `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`. A GPU that cannot take the parts (P beyond 65536, E beyond 16384:
   *   `ERR_VALUE`), has no room for them or fails is passed over by the device `auto`
   */
  static async from(
    parts: AnalysisParts,
    where: DeviceOptions | Backend = {},
    call?: Abortable,
  ): Promise<ImageAnalysis> {
    const work = async () => ImageAnalysis.#from(parts, where, false);
    const discard = (analysis: ImageAnalysis) => analysis.dispose();
    return traced('ImageAnalysis.from', () => abortable(signalOf('call', call), work, discard));
  }

  /** {@link ImageAnalysis.from}, on the calling thread; memory of any kind is read in place, and the features are copied. */
  static fromSync(parts: AnalysisParts, where: DeviceOptions | Backend = {}): ImageAnalysis {
    return ImageAnalysis.#from(parts, where, true) as ImageAnalysis;
  }

  static #from(parts: AnalysisParts, where: DeviceOptions | Backend, sync: boolean): MaybePromise<ImageAnalysis> {
    const checked = checkParts(parts);
    const create = (driver: Driver, parts: DriverParts) => queued(driver, () => driver.createAnalysis(parts, sync));
    const open = driverOf(where);
    if (open) return after(create(open, checked), (analysis) => new ImageAnalysis(analysis, open, false));
    const read = (again: boolean) => (again && !sync ? keptParts(checked) : checked);
    const opened = openWith('where', where as DeviceOptions, read, create);
    return after(opened, ({ made, driver }) => new ImageAnalysis(made, driver, true));
  }

  /** @internal Analyses of one device can be pruned together. */
  get driver(): Driver {
    return this.#device;
  }
  /** N, rows of the hidden states; of an analysis from parts: P. */
  get rows(): number {
    return this.#analysis.rows;
  }
  /** P, patches: N without the class token. */
  get patches(): number {
    return this.#analysis.patches;
  }
  /** Milliseconds per stage; all zero for an analysis from parts. */
  get timings(): AnalyzeTimings {
    return this.#analysis.timings;
  }
  /** Address of the rows that the kernels read and merging will read: a `HostBuffer`'s own when it was given one. */
  get featuresAddress(): bigint {
    return this.#analysis.featuresAddress;
  }
  /** The patches' rows of A_d of the paper: unit rows [P, E]. A copy. */
  patchEmbeddings(): Tensor {
    const { patches, projectionDim } = this.#analysis;
    return float32(this.#read('patchEmbeddings'), [patches, projectionDim]);
  }
  /** v_s of the paper, [E]: the class token's row of A_d, otherwise the normalised mean of the rows. A copy. */
  global(): Float32Array {
    return this.#read('global');
  }
  /** A_s of the paper, [P]. A copy. */
  saliency(): Float32Array {
    return this.#read('saliency');
  }
  /** The attention's context (eq. 2) and its output projection, [N, D] each, when `intermediates` asked for them. */
  intermediates(): { context: Tensor; attention: Tensor } | null {
    const kept = this.#read('intermediates');
    const tensor = (data: Float32Array) => float32(data, [this.rows, this.#analysis.width]);
    return kept && { context: tensor(kept.context), attention: tensor(kept.attention) };
  }

  /**
   * Keeps K visual tokens for a question: aligns text and patches (eq. 3), selects the patches that the text is about and those that
   * stand out (eq. 5), and merges every other patch into the nearest of them.
   *
   * @param text S of the paper, [T, E]: the question's tokens in the shared space, not normalised, without padding; null, with
   *   `taskShare: 0`: the saliency map alone chooses
   * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE` (text, keep, taskShare, endOfText, ...), `ERR_NOT_FINITE` (text,
   *   endOfText, saliency, features), `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`
   */
  async prune(text: Text | null, given: PruneOptions & Abortable): Promise<PruneResult> {
    const { signal, ...choice } = options('options', given, { ...PRUNE_OPTIONS, ...ABORTABLE });
    const work = async () => this.#prune(text, choice, false);
    return traced('ImageAnalysis.prune', () => abortable(signal, work));
  }

  /** {@link ImageAnalysis.prune}, on the calling thread. */
  pruneSync(text: Text | null, options: PruneOptions): PruneResult {
    return this.#prune(text, options, true) as PruneResult;
  }

  /**
   * {@link ImageAnalysis.prune} for several images of one device in one go: the tiles of an image, the frames of a video, the images
   * of a prompt. Each result is what `prune` gives for that image alone, to the bit.
   *
   * @param text one for all analyses, or a list with one for each
   * @param options the same for all, or a list with those of each
   * @throws DesapError as {@link ImageAnalysis.prune}, with the image; `ERR_SHAPE` for lists of different lengths; `ERR_VALUE` for analyses
   *   of different devices; one bad image fails the call
   */
  static async pruneBatch(
    analyses: readonly ImageAnalysis[],
    text: Text | null | readonly (Text | null)[],
    options: PruneOptions | readonly PruneOptions[],
    call?: Abortable,
  ): Promise<PruneResult[]> {
    const work = async () => ImageAnalysis.#pruneAll(analyses, text, options, false);
    return traced('ImageAnalysis.pruneBatch', () => abortable(signalOf('call', call), work));
  }

  /** {@link ImageAnalysis.pruneBatch}, on the calling thread. */
  static pruneBatchSync(
    analyses: readonly ImageAnalysis[],
    text: Text | null | readonly (Text | null)[],
    options: PruneOptions | readonly PruneOptions[],
  ): PruneResult[] {
    return ImageAnalysis.#pruneAll(analyses, text, options, true) as PruneResult[];
  }

  static #pruneAll(
    images: readonly ImageAnalysis[],
    text: Text | null | readonly (Text | null)[],
    given: PruneOptions | readonly PruneOptions[],
    sync: boolean,
  ): MaybePromise<PruneResult[]> {
    if (!isList(images)) throw invalid('ERR_VALUE', 'analyses', images, 'a list of ImageAnalysis');
    const analyses = entries('analyses', images);
    const textOf = eachOf('text', text, analyses.length);
    const optionsOf = eachOf('options', given, analyses.length);
    const requests = analyses.map((image, b) => {
      if (!isOf(ImageAnalysis, image)) throw invalid('ERR_VALUE', `analyses[${b}]`, image, 'an ImageAnalysis');
      assertAlive(`analyses[${b}]`, image.#alive);
      if (image.#device !== analyses[0].#device)
        throw mismatch('ERR_VALUE', `analyses[${b}]`, `one of ${image.#device.device}`, 'analyses of one device');
      const [argument, asked] = textOf(b);
      return pruneRequest(argument, asked, options(...optionsOf(b), PRUNE_OPTIONS), image.#analysis);
    });
    if (analyses.length === 0) return sync ? [] : Promise.resolve([]);
    const driven = analyses.map((image) => image.#analysis);
    const [{ driver }] = analyses;
    const prune = () => queued(driver, () => driver.pruneAll(driven, requests, sync));
    const outputs = isList(text) ? prune() : withSharedText(prune);
    return after(outputs, (all) => all.map((output, b) => pruneResult(output, requests[b])));
  }

  #prune(text: Text | null, given: PruneOptions, sync: boolean): MaybePromise<PruneResult> {
    const request = pruneRequest('text', text, options('options', given, PRUNE_OPTIONS), this.#analysis);
    assertAlive('ImageAnalysis', this.#alive);
    const output = queued(this.#device, () => this.#analysis.prune(request, sync));
    return after(output, (pruned) => pruneResult(pruned, request));
  }

  #read<K extends 'patchEmbeddings' | 'global' | 'saliency' | 'intermediates'>(what: K): ReturnType<DriverAnalysis[K]> {
    assertAlive('ImageAnalysis', this.#alive);
    return typed(() => this.#analysis[what]()) as ReturnType<DriverAnalysis[K]>;
  }

  /** Frees the analysis, and lets go of the `HostBuffer` that it reads. A pruning in flight ends first. */
  dispose(): void {
    if (!this.#alive) return;
    this.#alive = false;
    this.#analysis.dispose();
    if (this.#ownsDevice) this.#device.dispose();
  }

  [DISPOSE](): void {
    this.dispose();
  }
}

/** The item of each of `count` images, and its name: one for all, or one for each. */
function eachOf<T>(argument: string, given: T | readonly T[], count: number): (b: number) => [string, T] {
  if (!isList(given)) return () => [argument, given];
  const each = entries(argument, given);
  if (each.length !== count)
    throw mismatch('ERR_SHAPE', argument, `${each.length} of them`, `${count}, one for each analysis`);
  return (b) => [`${argument}[${b}]`, each[b]];
}

function checkParts(given: AnalysisParts): DriverParts {
  const { patchEmbeddings, global, saliency, features } = options('parts', given, PARTS);
  const embeddings = matrix('patchEmbeddings', patchEmbeddings);
  return {
    patchEmbeddings: embeddings,
    global: global === undefined ? null : vector('global', global, embeddings.cols),
    saliency: vector('saliency', saliency, embeddings.rows),
    features: matrix('features', features, { rows: embeddings.rows }),
  };
}

/** The parts as they are now, which the caller may change: a copy of all but the features of a `HostBuffer`. */
function keptParts({ patchEmbeddings, global, saliency, features }: DriverParts): DriverParts {
  const copy = (matrix: FloatMatrix) => ({ ...matrix, data: matrix.data.slice() });
  return {
    patchEmbeddings: copy(patchEmbeddings),
    global: global === null ? null : global.slice(),
    saliency: saliency.slice(),
    features: readInPlace(features.data) ? features : copy(features),
  };
}
