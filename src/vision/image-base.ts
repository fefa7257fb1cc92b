import type { Tensor } from 'onnxruntime-common';
import { DISPOSE } from '../dispose-symbols.js';
import { DesapError, invalid, mismatch } from '../errors.js';
import { ImageAnalysis, type PruneOptions, type PruneResult, type TextEmbeddings } from '../index.js';
import { Lifetime } from '../lifetime.js';
import { type OptionNames, options } from '../options.js';
import { PRUNE_OPTIONS, textEmbeddings } from '../prune-request.js';
import { float32, oneOf, vector } from '../tensor.js';
import { eachTile, shared, wholeImage } from './allocation.js';
import { checkQuestion } from './check-question.js';
import type { TokenLayout } from './layout.js';
import { Once } from './once.js';
import type {
  Allocation,
  Budget,
  EncodedImage,
  PrunedFeatures,
  Question,
  TaskForm,
  Tile,
  VisionPruneOptions,
  VisionTimings,
} from './vision-model.js';
import { countsOfTiles, joined, type KeptImage, type Part, partsOf } from './whole-image.js';

/** What an image needs of the model that it belongs to. */
export interface ImageOwner {
  readonly life: Lifetime;
  readonly budget: Budget;
  encodeQuestion(question: string): Promise<TextEmbeddings>;
}

/** An image's part of the computation, and the milliseconds that it took. */
export interface Analyzed {
  /** One of each part. */
  readonly analyses: readonly ImageAnalysis[];
  readonly milliseconds: number;
}

/** What an analysis is made for. */
export interface Purpose {
  /** Whether a text is to be compared with it. */
  readonly task: boolean;
}

/** How a text is compared. */
export type Comparison = Pick<PruneOptions, 'alignment' | 'lambda'>;

/** What was kept of one part. */
export type Kept = Pick<PruneResult, 'tokens' | 'indices' | 'assignment' | 'counts'>;

const { task: _, features: __, matrices: ___, ...OWN } = PRUNE_OPTIONS;
const NAMES: OptionNames<VisionPruneOptions> = { ...OWN, allocation: true };
const ALLOCATIONS = ['tile', 'image'] as const;

/** What encoded images have in common: a question's way through text encoder, pruner and connector. */
export abstract class EncodedImageBase implements EncodedImage {
  readonly #life: Lifetime;
  readonly #analyzed = new Map<string, Once<Analyzed>>();
  readonly medium: EncodedImage['medium'];

  /**
   * @param name of the class, for messages
   * @param milliseconds that the encoder took
   */
  protected constructor(
    name: string,
    private readonly owner: ImageOwner,
    private readonly about: {
      readonly layout: TokenLayout;
      readonly form: TaskForm;
      readonly medium?: EncodedImage['medium'];
      /** Whether all tiles are pruned as one where the budget is the image's, as the frames of a video. */
      readonly isJoint?: boolean;
      readonly milliseconds: number;
    },
  ) {
    this.#life = new Lifetime(name);
    this.medium = about.medium ?? 'image';
  }

  get tokenCount(): number {
    return this.about.layout.tokenCount;
  }

  get tiles(): readonly Tile[] {
    return this.about.layout.tiles;
  }

  async prune(question: Question, given?: VisionPruneOptions): Promise<PrunedFeatures> {
    return this.call(() => this.#prune(question, options<VisionPruneOptions>('options', given, NAMES)));
  }

  async #prune(question: Question, given: VisionPruneOptions): Promise<PrunedFeatures> {
    const { keep, keepRatio, saliency, allocation = this.#allocation, ...how } = given;
    oneOf('allocation', allocation, ALLOCATIONS);
    const budget = keep === undefined && keepRatio === undefined ? this.owner.budget : { keep, keepRatio };
    const { layout, form, milliseconds: vision } = this.about;
    const start = performance.now();
    const embeddings = await this.#embeddings(question, how.taskShare);
    const asked = performance.now();
    const parts = this.#parts(allocation);
    const { analyses, milliseconds: analyze } = await this.#analyze(allocation, { task: embeddings !== null });
    const text = embeddings && this.comparable(embeddings);
    const analyzed = performance.now();
    const map = saliency === undefined ? undefined : vector('saliency', saliency, layout.tokenCount);
    const alignment = how.alignment ?? this.#alignment(text);
    const isCompared = text !== null && how.taskShare !== 0;
    const compared = { alignment, lambda: how.lambda };
    const tasks = isCompared ? await this.taskMaps(parts, text, compared).catch(asQuestion) : null;
    const requests = parts.map(({ places }, p) => ({
      ...how,
      alignment,
      ...(map && { saliency: Float32Array.from(places, (place) => map[place]) }),
      ...(tasks && { task: tasks[p] }),
    }));
    const counts = await countsFor({ budget, allocation }, analyses, text, requests).catch(asQuestion);
    const kept = await pruneAll(
      analyses,
      text,
      requests.map((request, p) => ({ ...request, keep: counts[p] })),
    ).catch(asQuestion);
    const pruned = performance.now();
    const whole = joined(layout, parts, kept);
    const features = await this.#features(whole, kept);
    const timings: VisionTimings = {
      ...{ vision, analyze, text: asked - start, prune: pruned - analyzed, projector: performance.now() - pruned },
      stages: whole.timings,
    };
    const { unitRows: _, markerRows: __, markers: ___, ...result } = whole;
    const task = isCompared ? { form } : null;
    const further = this.further(kept);
    const tileCounts = countsOfTiles(layout, whole);
    return { ...result, features, ...(further && { further }), tileCounts, task, timings };
  }

  /** What `keep` is of unless the caller says: all frames that are pruned as one, or else each tile. */
  get #allocation(): Allocation {
    return this.about.isJoint ? 'image' : 'tile';
  }

  #parts(allocation: Allocation): Part[] {
    return partsOf(this.about.layout, this.about.isJoint === true && allocation === 'image');
  }

  /**
   * eq. 3 squares the cosine of a single row: a patch that has nothing to do with the question would score like one that has. SigLIP's
   * cosines are small and often negative, and eq. 3 weighs by them.
   */
  #alignment(text: TextEmbeddings | null): PruneOptions['alignment'] {
    if (text === null || this.about.form === 'clip') return undefined;
    if (this.about.form === 'siglip') return 'mean';
    return text.embeddings.dims?.at(-2) === 1 ? 'mean' : undefined;
  }

  async #embeddings(question: Question, taskShare = 0.5): Promise<TextEmbeddings | null> {
    if (typeof question === 'string') return this.owner.encodeQuestion(checkQuestion(question)).catch(asQuestion);
    if (question === null && taskShare === 0) return null;
    if (typeof question === 'object' && question !== null && 'embeddings' in question)
      return textEmbeddings('question', question);
    throw invalid('ERR_VALUE', 'question', question, 'a text, its embeddings, or null with taskShare: 0');
  }

  /** Kept units and markers as rows of the language model, [1, K, W], by their places. */
  async #features(whole: KeptImage, kept: readonly Kept[]): Promise<Tensor> {
    const { unitRows, markerRows, markers } = whole;
    const units = await this.connect(kept);
    if (markers.length === 0 && unitRows.every((row, i) => row === i)) return units;
    const width = units.dims[units.dims.length - 1];
    const rows = new Float32Array(whole.indices.length * width);
    const place = (from: Float32Array, to: Int32Array) => {
      for (const [i, row] of to.entries()) rows.set(from.subarray(i * width, (i + 1) * width), row * width);
    };
    place(units.data as Float32Array, unitRows);
    if (markers.length > 0) place(await this.markerFeatures(markers), markerRows);
    return float32(rows, [1, whole.indices.length, width]);
  }

  async all(): Promise<Tensor> {
    return this.call(() => this.everything());
  }

  /**
   * The pruner's view of each tile: saliency, patch embeddings; of all frames of a video that is pruned as one. Made once, by the
   * first call that needs it.
   * @throws DesapError `ERR_NOT_FINITE`, `ERR_OUT_OF_MEMORY`, `ERR_DISPOSED`
   */
  async analyses(): Promise<readonly ImageAnalysis[]> {
    return this.call(async () => (await this.#analyze(this.#allocation, { task: true })).analyses);
  }

  /**
   * That of an image that is pruned as one.
   * @throws DesapError `ERR_VALUE` for an image of several tiles
   */
  async analysis(): Promise<ImageAnalysis> {
    const [first, ...others] = await this.analyses();
    if (others.length === 0) return first;
    throw mismatch('ERR_VALUE', 'analysis', `an image of ${others.length + 1} tiles`, 'one of one tile, or analyses()');
  }

  #analyze(allocation: Allocation, purpose: Purpose): Promise<Analyzed> {
    const parts = this.#parts(allocation);
    const key = `${parts.length} ${this.covers(purpose)}`;
    const once = this.#analyzed.get(key) ?? new Once();
    this.#analyzed.set(key, once);
    return once.get(() => this.makeAnalyses(parts, purpose).catch(asEncoding));
  }

  dispose(): void {
    this.#life.end(async () => {
      for (const once of this.#analyzed.values()) for (const one of (await once.made())?.analyses ?? []) one.dispose();
      await this.free();
    });
  }

  /** As {@link EncodedImage.dispose}. */
  [DISPOSE](): void {
    this.dispose();
  }

  /** @throws DesapError `ERR_DISPOSED` */
  protected check(): void {
    this.#life.check();
  }

  /** Runs a call of the image, which is one of its model too. */
  protected async call<T>(work: () => Promise<T>): Promise<T> {
    return this.#life.call(() => this.owner.life.call(work));
  }

  /** A text's embeddings in the space of the image's. */
  protected comparable(text: TextEmbeddings): TextEmbeddings {
    return text;
  }

  /** The task map of each part, where that is not the one that its analysis gives. */
  protected async taskMaps(
    _parts: readonly Part[],
    _text: TextEmbeddings,
    _how: Comparison,
  ): Promise<Float32Array[] | null> {
    return null;
  }

  /** What purposes an analysis for this one serves: analyses of one name are made once. */
  protected covers(_purpose: Purpose): string {
    return 'all';
  }

  /** One analysis of each part, which are freed with the image. */
  protected abstract makeAnalyses(parts: readonly Part[], purpose: Purpose): Promise<Analyzed>;
  /** Kept units of all parts, one part after the other, as rows of the language model, [1, K, W]. */
  protected abstract connect(kept: readonly Kept[]): Promise<Tensor>;
  protected abstract everything(): Promise<Tensor>;
  protected abstract free(): unknown;

  /** What the file has of kept units besides features, by output; none by default. */
  protected further(_kept: readonly Kept[]): Record<string, Tensor> | undefined {
    return undefined;
  }

  /** Markers at these places as rows of the language model. */
  protected async markerFeatures(_places: Int32Array): Promise<Float32Array> {
    throw new DesapError('ERR_INTERNAL', 'markers: this family has none');
  }
}

/** The tokens of all parts, one part after the other. */
export function tokensOf(kept: readonly Kept[]): Tensor {
  if (kept.length === 1) return kept[0].tokens;
  const width = kept[0].tokens.dims[1];
  const rows = kept.reduce((sum, { tokens }) => sum + tokens.dims[0], 0);
  const all = new Float32Array(rows * width);
  let at = 0;
  for (const { tokens } of kept) {
    all.set(tokens.data as Float32Array, at);
    at += tokens.data.length;
  }
  return float32(all, [rows, width]);
}

/** K of each part. An image's K is shared by what the question finds in the parts; without one by what stands out. */
async function countsFor(
  { budget, allocation }: { budget: Budget; allocation: Allocation },
  analyses: readonly ImageAnalysis[],
  text: TextEmbeddings | null,
  requests: readonly PruneOptions[],
): Promise<number[]> {
  const units = analyses.map(({ patches }) => patches);
  if (allocation === 'tile') return eachTile(budget, units);
  const total = wholeImage(budget, units);
  if (units.length === 1) return [total];
  const ask = requests.map((request) => ({ ...request, keep: 1, merge: false, maps: true }));
  const maps = (await pruneAll(analyses, text, ask)).map((kept) => kept.maps!);
  const isAsked = text !== null && requests[0].taskShare !== 0;
  return shared(
    total,
    units,
    maps.map(({ task, saliency }) => positive((isAsked && task) || saliency)),
  );
}

/** The sum of what is above zero. */
function positive(map: Float32Array): number {
  return map.reduce((sum, value) => sum + Math.max(0, value), 0);
}

/** All parts in one go. */
async function pruneAll(
  analyses: readonly ImageAnalysis[],
  text: TextEmbeddings | null,
  requests: readonly PruneOptions[],
): Promise<PruneResult[]> {
  if (analyses.length > 1) return ImageAnalysis.pruneBatch(analyses, text, requests);
  return [await analyses[0].prune(text, requests[0])];
}

/** What the pruner is given is the encoder's, and not what the caller knows. */
function asEncoding(error: unknown): never {
  if (!(error instanceof DesapError) || error.code !== 'ERR_NOT_FINITE') throw error;
  const text = `image: it is not finite behind the encoder (${error.message})`;
  throw new DesapError(error.code, text, { cause: error });
}

/** What is wrong with a text, under the name that the caller has for it. */
function asQuestion(error: unknown): never {
  if (!(error instanceof DesapError) || !/^text\b/.test(error.message)) throw error;
  throw new DesapError(error.code, error.message.replace(/^text(\[\d+\])?/, 'question'), { cause: error });
}
