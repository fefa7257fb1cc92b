/** Looking at the whole of an image before its tiles are encoded: the option `tiles`, for images of any family. */
import type { ImageAnalysis, PruneResult, TextEmbeddings } from '../index.js';
import { unitRows } from '../kernels/unit-rows.js';
import { reading } from '../options.js';
import { textEmbeddings } from '../prune-request.js';
import { matrix, widened } from '../tensor.js';
import { checkQuestion } from './check-text.js';
import type { EncodedImageBase, ImageOwner } from './image-base.js';
import type { RivalOptions } from './method-choice.js';
import { asQuestion, type PreparedImage, rethrow } from './prune-together.js';
import { type LookRule, type TileChoice, tilesTaken } from './tile-options.js';
import { tileScores, type ViewRows } from './tile-rules.js';
import type { Looked, PrunedFeatures, Question, VisionPruneOptions } from './vision-model.js';

/** An image whose tiles are encoded when a question needs them. */
export interface Lookable {
  readonly choice: TileChoice;
  /** How many tiles there are beside the whole view, and those of them that have units, ascending; all are counted without it. */
  readonly others: number;
  readonly candidates: readonly number[];
  /** A score of each candidate. */
  scores(by: LookRule, text: TextEmbeddings | null): Promise<Float32Array>;
  /** Encodes those of some tiles that are not yet. */
  encode(tiles: readonly number[]): Promise<void>;
  /** The whole view and some tiles that are encoded, as an image of its own, which owns nothing. */
  view(tiles: readonly number[]): EncodedImageBase;
}

/** What was looked at for a question. */
interface Seen {
  readonly view: EncodedImageBase;
  readonly looked: Looked;
  /** The question as the view takes it. */
  readonly question: Question;
  readonly timings: { readonly text: number; readonly analyze: number };
}

/** The questions of one image. */
export class Looking {
  #encoding: Promise<unknown> = Promise.resolve();
  #last: { readonly key: string; readonly view: EncodedImageBase } | null = null;

  constructor(
    private readonly image: Lookable,
    private readonly owner: ImageOwner,
  ) {}

  /** As `EncodedImageBase.prepare`. */
  async prepare(asked: Question, given: VisionPruneOptions): Promise<PreparedImage> {
    const { view, question, ...seen } = await this.#see(asked);
    const prepared = await view.prepare(question, given);
    // Nobody knows how many units there are before the tiles are taken.
    const units = prepared.analyses.reduce((sum, { patches }) => sum + patches, 0);
    const { keep } = prepared.budget;
    const isMore = prepared.allocation === 'image' && Number.isSafeInteger(keep) && (keep as number) > units;
    return {
      ...prepared,
      budget: isMore ? { keep: units } : prepared.budget,
      finish: async (kept: readonly PruneResult[], milliseconds: number) =>
        withLooked(await prepared.finish(kept, milliseconds), seen),
    };
  }

  /** As `EncodedImageBase.pruneBy`. */
  async pruneBy(asked: Question, given: RivalOptions): Promise<PrunedFeatures> {
    const { view, question, ...seen } = await this.#see(asked);
    return withLooked(await view.pruneBy(question, given), seen);
  }

  /** Encodes tiles, one call after the other: a tile that two questions need is encoded once. */
  encode(tiles: readonly number[]): Promise<void> {
    const done = this.#encoding.then(() => this.image.encode(tiles));
    this.#encoding = done.catch(() => {});
    return done;
  }

  async #see(question: Question): Promise<Seen> {
    const { choice, candidates, others: tiles } = this.image;
    const start = performance.now();
    const asked =
      typeof question === 'string'
        ? await this.owner.encodeQuestion(checkQuestion(question)).catch(rethrow(asQuestion))
        : question;
    const encoded = performance.now();
    const isText = typeof asked === 'object' && asked !== null && reading('question', () => 'embeddings' in asked);
    const text = isText ? textEmbeddings('question', asked) : null;
    const by = text === null ? 'saliency' : choice.by;
    const own = await this.image.scores(by, text);
    const taken = tilesTaken(choice, own).map((at) => candidates[at]);
    const timings = { text: encoded - start, analyze: performance.now() - encoded };
    await this.encode([...taken]);
    const scores = new Float32Array(tiles).fill(Math.min(...own));
    for (const [at, tile] of candidates.entries()) scores[tile] = own[at];
    return { view: this.#view(taken), looked: { by, taken, scores }, question: asked, timings };
  }

  /** What an image holds for one choice of tiles is made again for another. */
  #view(taken: Int32Array): EncodedImageBase {
    const key = taken.join();
    if (this.#last?.key !== key) this.#last = { key, view: this.image.view([...taken]) };
    return this.#last.view;
  }
}

function withLooked(
  { timings, ...pruned }: PrunedFeatures,
  { looked, timings: { text, analyze } }: Pick<Seen, 'looked' | 'timings'>,
): PrunedFeatures {
  return {
    ...pruned,
    looked,
    timings: { ...timings, text: timings.text + text, analyze: timings.analyze + analyze },
  };
}

/** What is known of the units of the whole view: their embeddings as unit rows, and the saliency map. */
export interface ViewParts {
  readonly units: ViewRows;
  readonly saliency: Float32Array;
}

/** The same of an analysis. */
export function partsOfView(analysis: ImageAnalysis): ViewParts {
  const { data, dims } = analysis.patchEmbeddings();
  return { units: { data: data as Float32Array, width: dims[1] }, saliency: analysis.saliency() };
}

/**
 * The scores of tiles by what is known of the whole view.
 *
 * @param text in the space of its embeddings; null: without a question
 * @param tileOf for each of its units the tile that it is a part of
 */
export function scoresOfView(
  rule: Exclude<LookRule, 'block'>,
  { units, saliency }: ViewParts,
  text: TextEmbeddings | null,
  { tileOf, tiles }: { readonly tileOf: Int32Array; readonly tiles: number },
): Float32Array {
  const rows = text && matrix('question', text.embeddings, { cols: units.width });
  const unit = rows && Float32Array.from(unitRows({ ...rows, data: widened(rows) }).data);
  return tileScores(rule, {
    tileOf,
    tiles,
    saliency,
    asked: unit && { units, text: { data: unit, width: units.width } },
  });
}
