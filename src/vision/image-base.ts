import type { Tensor } from 'onnxruntime-common';
import { DISPOSE } from '../dispose-symbols.js';
import { DesapError, invalid } from '../errors.js';
import type { ImageAnalysis, PruneResult, TextEmbeddings } from '../index.js';
import { Lifetime } from '../lifetime.js';
import { options } from '../options.js';
import { PRUNE_OPTIONS, textEmbeddings } from '../prune-request.js';
import { checkQuestion } from './check-question.js';
import { Once } from './once.js';
import type {
  Budget,
  EncodedImage,
  PrunedFeatures,
  Question,
  Tile,
  VisionPruneOptions,
  VisionTimings,
} from './vision-model.js';

/** What an image needs of the model that it belongs to. */
export interface ImageOwner {
  readonly life: Lifetime;
  readonly budget: Budget;
  encodeQuestion(question: string): Promise<TextEmbeddings>;
}

/** An image's part of the computation, and the milliseconds that it took. */
export interface Analyzed {
  readonly analysis: ImageAnalysis;
  readonly milliseconds: number;
}

/** Which tokens were kept. */
export type Kept = Pick<PruneResult, 'tokens' | 'indices' | 'assignment' | 'counts'>;

const { features: _, matrices: __, ...NAMES } = PRUNE_OPTIONS;

/** What encoded images have in common: a question's way through text encoder, pruner and connector. */
export abstract class EncodedImageBase implements EncodedImage {
  readonly #life: Lifetime;
  readonly #analyzed = new Once<Analyzed>();
  abstract readonly tokenCount: number;
  abstract readonly tiles: readonly Tile[];

  /**
   * @param name of the class, for messages
   * @param milliseconds that the encoder took
   */
  protected constructor(
    name: string,
    private readonly owner: ImageOwner,
    private readonly milliseconds: number,
  ) {
    this.#life = new Lifetime(name);
  }

  async prune(question: Question, given?: VisionPruneOptions): Promise<PrunedFeatures> {
    return this.call(() => this.#prune(question, options<VisionPruneOptions>('options', given, NAMES)));
  }

  async #prune(question: Question, { keep, keepRatio, ...how }: VisionPruneOptions): Promise<PrunedFeatures> {
    const budget = keep === undefined && keepRatio === undefined ? this.owner.budget : { keep, keepRatio };
    const start = performance.now();
    const text = await this.#embeddings(question, how.taskShare);
    const asked = performance.now();
    const { analysis, milliseconds: analyze } = await this.#analyze();
    const analyzed = performance.now();
    const kept = await analysis.prune(text && this.comparable(text), { ...how, ...budget }).catch(asQuestion);
    const pruned = performance.now();
    const features = await this.connect(kept);
    const projected = performance.now();
    const { tokens: _, timings: stages, ...result } = kept;
    const timings: VisionTimings = {
      vision: this.milliseconds,
      analyze,
      text: asked - start,
      prune: pruned - analyzed,
      projector: projected - pruned,
      stages,
    };
    return { ...result, features, timings };
  }

  async #embeddings(question: Question, taskShare = 0.5): Promise<TextEmbeddings | null> {
    if (typeof question === 'string') return this.owner.encodeQuestion(checkQuestion(question)).catch(asQuestion);
    if (question === null && taskShare === 0) return null;
    if (typeof question === 'object' && question !== null && 'embeddings' in question)
      return textEmbeddings('question', question);
    throw invalid('ERR_VALUE', 'question', question, 'a text, its embeddings, or null with taskShare: 0');
  }

  async all(): Promise<Tensor> {
    return this.call(() => this.everything());
  }

  /**
   * The pruner's view of the image: saliency, patch embeddings. Made once, by the first call that needs it.
   * @throws DesapError `ERR_NOT_FINITE`, `ERR_OUT_OF_MEMORY`, `ERR_DISPOSED`
   */
  async analysis(): Promise<ImageAnalysis> {
    return this.call(async () => (await this.#analyze()).analysis);
  }

  #analyze(): Promise<Analyzed> {
    return this.#analyzed.get(() => this.makeAnalysis().catch(asEncoding));
  }

  dispose(): void {
    this.#life.end(() => this.free());
  }

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

  /** The analysis, where a call has made one. */
  protected analyzed(): Promise<Analyzed | null> {
    return this.#analyzed.made();
  }

  protected abstract makeAnalysis(): Promise<Analyzed>;
  /** Kept tokens as rows of the language model, [1, K, W]. */
  protected abstract connect(kept: Kept): Promise<Tensor>;
  protected abstract everything(): Promise<Tensor>;
  protected abstract free(): unknown;
}

/** What the pruner is given is the encoder's, and not what the caller knows. */
function asEncoding(error: unknown): never {
  if (!(error instanceof DesapError) || error.code !== 'ERR_NOT_FINITE') throw error;
  const text = `image: it, or another of its call, is not finite behind the encoder (${error.message})`;
  throw new DesapError(error.code, text, { cause: error });
}

/** What is wrong with a text, under the name that the caller has for it. */
function asQuestion(error: unknown): never {
  if (!(error instanceof DesapError) || !/^text\b/.test(error.message)) throw error;
  throw new DesapError(error.code, error.message.replace('text', 'question'), { cause: error });
}
