import type { Tensor } from 'onnxruntime-common';
import { ABORTABLE, type Abortable, abortable, signalOf } from '../abort.js';
import { DISPOSE } from '../dispose-symbols.js';
import { DesapError, invalid, mismatch, notFinite } from '../errors.js';
import type { ImageAnalysis, PruneOptions, PruneResult, TensorLike, TextEmbeddings } from '../index.js';
import { Lifetime } from '../lifetime.js';
import { concatenated } from '../methods/matrix.js';
import type { Grid, MethodChoice } from '../methods/method.js';
import { rivalOf } from '../methods/rival.js';
import { Once } from '../once.js';
import { type OptionNames, options, reading } from '../options.js';
import { PRUNE_OPTIONS, textEmbeddings } from '../prune-request.js';
import { inPublicOrder, methodResult, rowsInOrder } from '../prune-result.js';
import { Stopwatch } from '../stopwatch.js';
import { float32, oneOf, vector } from '../tensor.js';
import { traced } from '../trace.js';
import { checkQuestion } from './check-text.js';
import type { TokenLayout } from './layout.js';
import { choiceOfImage, choicesOf, type RivalOptions } from './method-choice.js';
import { AskedSource, type MethodSource, type WatchedPart } from './method-source.js';
import {
  asEncoding,
  asMethodsInput,
  asQuestion,
  mapTogether,
  type PreparedImage,
  type Prunable,
  pruneTogether,
  rethrow,
} from './prune-together.js';
import { checkDistances, withoutPreset } from './vision-choices.js';
import type {
  Allocation,
  Budget,
  Distances,
  EncodedImage,
  PrunedFeatures,
  Question,
  TaskForm,
  Tile,
  VisionPruneOptions,
  VisionTimings,
} from './vision-model.js';
import {
  countsOfTiles,
  joined,
  type KeptImage,
  type Part,
  partOf,
  partsOf,
  unitsOfParts,
  withDropped,
} from './whole-image.js';

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

/** The units of each part as rows of the language model, and the milliseconds that they took. */
interface Projected {
  readonly rows: readonly TensorLike[];
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
/** Names of the options of a pruning. */
export const VISION_PRUNE_OPTIONS: OptionNames<VisionPruneOptions> = {
  ...OWN,
  ...{ preset: true, allocation: true, method: true, methodOptions: true, layout: true },
};

/**
 * The options of a pruning, checked for their names, without a preset.
 * @throws DesapError `ERR_VALUE`
 */
export function visionPruneOptions(argument: string, given: VisionPruneOptions | undefined) {
  const checked = withoutPreset(options<VisionPruneOptions>(argument, given, VISION_PRUNE_OPTIONS));
  checkDistances(checked);
  return checked;
}

/**
 * The options of a call that prunes one image, checked for their names.
 * @throws DesapError `ERR_VALUE`
 */
export function abortableOptions(given: (VisionPruneOptions & Abortable) | undefined): VisionPruneOptions & Abortable {
  return options('options', given, { ...VISION_PRUNE_OPTIONS, ...ABORTABLE });
}
const ALLOCATIONS = ['tile', 'image'] as const;

/** What encoded images have in common: a question's way through text encoder, pruner and connector. */
export abstract class EncodedImageBase implements EncodedImage, Prunable {
  readonly #life: Lifetime;
  readonly #analyzed = new Map<string, Once<Analyzed>>();
  readonly #projected = new Once<Projected | null>();
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
      /** How the tiles behind the first, which is the whole image, make one; left out where there is no such image. */
      readonly tileGrid?: Grid;
      readonly milliseconds: number;
    },
  ) {
    this.#life = new Lifetime(name);
    this.medium = about.medium ?? 'image';
  }

  abstract get byteLength(): number;

  get tokenCount(): number {
    return this.about.layout.tokenCount;
  }

  get tiles(): readonly Tile[] {
    return this.about.layout.tiles;
  }

  get least(): number {
    return this.#parts('image').length;
  }

  async prune(question: Question, given?: VisionPruneOptions & Abortable): Promise<PrunedFeatures> {
    const { signal, ...choice } = abortableOptions(given);
    const options = visionPruneOptions('options', choice);
    const [pruned] = await traced('EncodedImage.prune', () =>
      abortable(signal, () => pruneTogether([{ image: this, question, options }])),
    );
    return pruned;
  }

  /** @internal Whether this model encoded it. */
  isOf({ life }: Pick<ImageOwner, 'life'>): boolean {
    return this.owner.life === life;
  }

  /** @internal What the pruner is to be asked. */
  async prepare(question: Question, given: VisionPruneOptions): Promise<PreparedImage> {
    const { keep, keepRatio, saliency, distances, allocation = this.#allocation, method: _, ...how } = given;
    oneOf('allocation', allocation, ALLOCATIONS);
    const budget = keep === undefined && keepRatio === undefined ? this.owner.budget : { keep, keepRatio };
    const { layout, form, milliseconds: vision } = this.about;
    const start = performance.now();
    const embeddings = await this.#embeddings(question, how.taskShare);
    const asked = performance.now();
    const parts = this.#parts(allocation);
    const { analyses, milliseconds } = await this.#analyze(allocation, { task: embeddings !== null });
    const waited = waitingOf(analyses);
    const text = embeddings && this.comparable(embeddings);
    const differing = await this.#distances(parts, how.taskShare === 1 ? undefined : distances);
    const analyzed = performance.now();
    const map = saliency === undefined ? undefined : finiteMap('saliency', saliency, layout.tokenCount);
    const alignment = how.alignment ?? this.#alignment(text);
    const isCompared = text !== null && how.taskShare !== 0;
    const compared = { alignment, lambda: how.lambda };
    const tasks = isCompared ? await this.taskMaps(parts, text, compared).catch(rethrow(asQuestion)) : null;
    const requests = parts.map(({ places }, p) => ({
      ...how,
      alignment,
      ...(map && { saliency: Float32Array.from(places, (place) => map[place]) }),
      ...(tasks && { task: tasks[p] }),
      ...(differing && { distances: differing.rows[p] }),
    }));
    const analyze = milliseconds - waited;
    const own = { vision, analyze, text: asked - start, prune: performance.now() - analyzed };
    const join = (kept: readonly PruneResult[]) => joined(layout, parts, kept);
    return {
      ...{ analyses, units: unitsOfParts(parts), text, requests, budget, allocation, join },
      finish: async (kept, milliseconds) =>
        this.#finish(how.merge === false ? join(kept) : await this.#joined(join(kept), parts, kept), kept, {
          task: isCompared ? { form } : null,
          timings: {
            ...{ ...own, waiting: waited + waitingOf(kept) },
            ...{ prune: own.prune + milliseconds, projector: differing?.milliseconds ?? 0 },
          },
        }),
    };
  }

  /** @internal What a method in place of DeSAP's own keeps. */
  pruneBy(question: Question, given: RivalOptions): Promise<PrunedFeatures> {
    return this.#pruneBy(question, given).catch(rethrow(asMethodsInput));
  }

  async #pruneBy(question: Question, given: RivalOptions): Promise<PrunedFeatures> {
    const { allocation, ...asked } = given;
    const { keep, keepRatio } = asked;
    const budget = keep === undefined && keepRatio === undefined ? this.owner.budget : { keep, keepRatio };
    const { layout, form, milliseconds: vision, tileGrid: grid = null } = this.about;
    const chooser = rivalOf(asked);
    if (allocation !== undefined) oneOf('allocation', allocation, ALLOCATIONS);
    const tiles = layout.places.map((_, tile) => partOf(layout, tile));
    const isShared = grid !== null && chooser.chooseTiles !== undefined;
    const parts = isShared ? tiles : partsOf(layout, false);
    const sources = parts.map((part) => this.methodSource(part));
    for (const tap of isShared ? [...chooser.taps, ...(chooser.tileTaps ?? [])] : chooser.taps)
      for (const source of sources) await source.tap(tap);
    const start = performance.now();
    const text = chooser.isAsked ? await this.#embeddings(question) : null;
    const encoded = performance.now();
    const watch = new Stopwatch<WatchedPart>();
    const task = new Once<{ readonly map: Float32Array; readonly analyze: number }>();
    const taskMap = async ({ places }: Part) => {
      const { map } = await task.get(() => this.#taskMap(text, watch));
      return Float32Array.from(places, (place) => map[place]);
    };
    const images = sources.map((source, p) => new AskedSource(source, text, () => taskMap(parts[p]), watch));
    const choices = await choicesOf(chooser, images, { budget, units: unitsOfParts(parts), allocation, grid });
    const [taps, merge, projector, waited] = (['taps', 'merge', 'features', 'analysis'] as const).map(watch.spent);
    const prune = performance.now() - encoded - taps - projector - waited;
    const own = [...parts.keys()].filter((p) => parts[p].places.length > 0);
    const kept = own.map((p) => methodResult(choices.tiles[p], { select: 0, merge: 0 }));
    const chosen = own.map((p) => parts[p]);
    // Dropped rows go where a method's others do.
    const isMerged = kept.every(({ assignment }) => assignment.every((k) => k >= 0));
    const alone = joined(layout, chosen, kept);
    const whole = isMerged ? await this.#joined(alone, chosen, kept) : alone;
    const choice = choiceOfImage(choices, chosen, whole);
    const result = await this.#finish({ ...whole, timings: { ...whole.timings, select: prune - merge, merge } }, kept, {
      task: chooser.isAsked ? { form } : null,
      // The analysis is made once for all questions, and counts for each, as it does for DeSAP.
      timings: {
        ...{ waiting: 0, vision, analyze: taps + ((await task.made())?.analyze ?? 0), text: encoded - start },
        ...{ prune, projector },
      },
      isConnected: choice.isProjected,
    });
    const pruned = { ...result, choice };
    return asked.layout === 'public' ? asPublic(pruned) : pruned;
  }

  /** Lets units that the tower dropped join the kept ones. */
  async #joined(whole: KeptImage, parts: readonly Part[], kept: readonly Kept[]): Promise<KeptImage> {
    if (this.about.layout.dropped === undefined) return whole;
    const nearest: Int32Array[] = [];
    for (const [p, part] of parts.entries()) nearest.push(await this.nearest(part, kept[p].indices));
    return withDropped(whole, parts, { kept, nearest });
  }

  /** The task map of all tokens, with the alignment `mean`, and the milliseconds of the analysis that it is made of. */
  async #taskMap(text: TextEmbeddings | null, watch: Stopwatch<WatchedPart>) {
    const task = true;
    const { milliseconds: analyze } = await watch.timed('analysis', () => this.#analyze(this.#allocation, { task }));
    const how = { alignment: 'mean', taskShare: 1 } as const;
    const [{ task: map }] = await mapTogether([{ image: this, question: text, options: how }]);
    return { map: map as Float32Array, analyze };
  }

  /**
   * @param timings without what the connector takes here
   * @param isConnected whether the tokens are behind the connector already
   */
  async #finish(
    whole: KeptImage,
    kept: readonly Kept[],
    {
      task,
      timings,
      isConnected = false,
    }: Pick<PrunedFeatures, 'task'> & {
      timings: Omit<VisionTimings, 'stages'>;
      isConnected?: boolean;
    },
  ): Promise<PrunedFeatures> {
    const start = performance.now();
    const units = isConnected ? asBatch(tokensOf(kept)) : await this.connect(kept);
    const features = await this.#features(whole, units);
    const projector = timings.projector + performance.now() - start;
    const { unitRows: _, markerRows: __, markers: ___, timings: stages, ...result } = whole;
    const further = this.further(kept);
    const { layout } = this.about;
    const tileCounts = countsOfTiles(layout, whole);
    const dropped = layout.dropped && Int32Array.from(layout.dropped.flatMap((own) => [...own])).sort();
    return {
      ...{ ...result, features, ...(further && { further }), ...(dropped && { dropped }), tileCounts, task },
      timings: { ...timings, projector, stages },
    };
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

  /** Rows of each part that stand for its units where distances count; null for those that are merged. */
  async #distances(parts: readonly Part[], which: Distances | undefined): Promise<Projected | null> {
    if (which === undefined || (which === 'hidden' && this.about.form === 'clip')) return null;
    if (which === 'projected') return this.#projected.get(() => this.#project(parts)).catch(rethrow(asEncoding));
    throw invalid('ERR_VALUE', 'distances', which, "'projected': this model's tokens are merged behind its connector");
  }

  async #project(parts: readonly Part[]): Promise<Projected | null> {
    const start = performance.now();
    const rows = await this.projected(parts);
    return rows && { rows, milliseconds: performance.now() - start };
  }

  async #embeddings(question: Question, taskShare = 0.5): Promise<TextEmbeddings | null> {
    if (typeof question === 'string')
      return this.owner.encodeQuestion(checkQuestion(question)).catch(rethrow(asQuestion));
    if (question === null && taskShare === 0) return null;
    if (typeof question === 'object' && question !== null && reading('question', () => 'embeddings' in question))
      return textEmbeddings('question', question);
    throw invalid('ERR_VALUE', 'question', question, 'a text, its embeddings, or null with taskShare: 0');
  }

  /** Kept units and markers as rows of the language model, [1, K, W], by their places. */
  async #features(whole: KeptImage, units: Tensor): Promise<Tensor> {
    const { unitRows, markerRows, markers } = whole;
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

  async all(call?: Abortable): Promise<Tensor> {
    return traced('EncodedImage.all', () => this.call(() => this.everything(), signalOf('call', call)));
  }

  /**
   * The pruner's view of each tile: saliency, patch embeddings; of all frames of a video that is pruned as one. Made once, by the
   * first call that needs it.
   * @throws DesapError `ERR_NOT_FINITE`, `ERR_OUT_OF_MEMORY`, `ERR_DISPOSED`
   */
  async analyses(call?: Abortable): Promise<readonly ImageAnalysis[]> {
    const work = async () => (await this.#analyze(this.#allocation, { task: true })).analyses;
    return this.call(work, signalOf('call', call));
  }

  /**
   * That of an image that is pruned as one.
   * @throws DesapError `ERR_VALUE` for an image of several tiles
   */
  async analysis(call?: Abortable): Promise<ImageAnalysis> {
    const [first, ...others] = await this.analyses(call);
    if (others.length === 0) return first;
    throw mismatch('ERR_VALUE', 'analysis', `an image of ${others.length + 1} tiles`, 'one of one tile, or analyses()');
  }

  #analyze(allocation: Allocation, purpose: Purpose): Promise<Analyzed> {
    const parts = this.#parts(allocation);
    const key = `${parts.length} ${this.covers(purpose)}`;
    const once = this.#analyzed.get(key) ?? new Once();
    this.#analyzed.set(key, once);
    return once.get(() => this.makeAnalyses(parts, purpose).catch(rethrow(asEncoding)));
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

  /** @internal Runs a call of the image, which is one of its model too. */
  async call<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    return this.#life.call(() => this.owner.life.call(work), signal);
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

  /** What methods read of a tile. */
  protected abstract methodSource(part: Part): MethodSource;
  /** One analysis of each part, which are freed with the image. */
  protected abstract makeAnalyses(parts: readonly Part[], purpose: Purpose): Promise<Analyzed>;
  /** The units of each part as rows of the language model; null where those are what is merged. Only CLIP towers merge others, by tiles. */
  protected async projected(_parts: readonly Part[]): Promise<readonly TensorLike[] | null> {
    return null;
  }

  /** Kept units of all parts, one part after the other, as rows of the language model, [1, K, W]. */
  protected abstract connect(kept: readonly Kept[]): Promise<Tensor>;
  protected abstract everything(): Promise<Tensor>;
  protected abstract free(): unknown;

  /** For each unit of a part that the tower dropped: the position, among its kept units, of the one that is nearest at the cut. */
  protected async nearest(_part: Part, _kept: Int32Array): Promise<Int32Array> {
    throw new DesapError('ERR_INTERNAL', 'nearest: this family drops none');
  }

  /** What the file has of kept units besides features, by output; none by default. */
  protected further(_kept: readonly Kept[]): Record<string, Tensor> | undefined {
    return undefined;
  }

  /** Markers at these places as rows of the language model. */
  protected async markerFeatures(_places: Int32Array): Promise<Float32Array> {
    throw new DesapError('ERR_INTERNAL', 'markers: this family has none');
  }
}

/** The same features in the order of the published code. */
function asPublic(pruned: PrunedFeatures & { readonly choice: MethodChoice }): PrunedFeatures {
  const { choice, features, further } = pruned;
  const rows = (tensor: Tensor) => rowsInOrder(tensor, choice.order);
  return {
    ...inPublicOrder(pruned, choice),
    features: rows(features),
    ...(further && { further: Object.fromEntries(Object.entries(further).map(([name, one]) => [name, rows(one)])) }),
  };
}

/** The tokens of all parts, one part after the other. */
export function tokensOf(kept: readonly Kept[]): Tensor {
  if (kept.length === 1) return kept[0].tokens;
  const width = kept[0].tokens.dims[1];
  const all = concatenated(kept.map(({ tokens }) => tokens.data as Float32Array));
  return float32(all, [all.length / width, width]);
}

/** Milliseconds that calls waited for the device. */
function waitingOf(results: readonly { readonly timings: { readonly waiting: number } }[]): number {
  return results.reduce((sum, { timings }) => sum + timings.waiting, 0);
}

function asBatch({ data, dims }: Tensor): Tensor {
  return float32(data as Float32Array, [1, ...dims]);
}

/** A map of all tokens, checked before its parts are told apart. */
function finiteMap(argument: string, given: Float32Array | TensorLike, tokens: number): Float32Array {
  const map = vector(argument, given, tokens);
  const bad = map.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) throw notFinite(argument, bad);
  return map;
}

/** A data error of the hidden states of one tile: where an image has several, it says which. */
export function ofTile(error: unknown, tile: number, tiles: number): unknown {
  const { row, image } = error as { row?: number; image?: number };
  // With an image's number it is of a call for several tiles, and may be another's.
  if (row === undefined || image !== undefined) return error;
  return notFinite(tiles > 1 ? `hidden states of tile ${tile}` : 'hidden states', row);
}
