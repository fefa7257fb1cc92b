import { join } from 'node:path';
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { ASYNC_DISPOSE, DISPOSE } from '../../dispose-symbols.js';
import { DesapError, mismatch } from '../../errors.js';
import { requireFolder } from '../../files.js';
import { askAhead } from '../../vision/ask-ahead.js';
import { checkQuestion } from '../../vision/check-text.js';
import { compact, type KeptPatches, type Positions } from '../../vision/compact.js';
import type { VisionModelOptions } from '../../vision/families.js';
import type { ImageSource } from '../../vision/image-processor.js';
import { onnxName } from '../../vision/model-folder.js';
import { openVisionModel } from '../../vision/open.js';
import { allOrNone, atRest, openSession, runSession } from '../../vision/session.js';
import type { EncodedImage, PrunedFeatures, VisionModel, VisionPruneOptions } from '../../vision/vision-model.js';
import { llavaImages } from '../images/llava.js';
import type { ImageReader, ReadImage, Strip } from '../images/reader.js';
import { Chat } from './chat.js';
import { Decoder, int64 } from './decoder.js';
import type { PromptForm } from './prompt.js';

type AskedAhead = ReturnType<typeof askAhead>;

const EMBED = { argument: 'inputIds', graph: 'embed_tokens.onnx' };

export interface LlavaOptions extends VisionModelOptions {
  /** CLIP folder of the same vision tower. */
  clip: string;
  /** What reads images; default: one tile for each. */
  images?: ImageReader;
  /** Default: the folder's chat template. */
  prompt?: PromptForm;
}

/** How long an answer may be, and which positions the kept tokens have in it. */
export interface CompletionOptions {
  /** Default `compact`. `original` needs a decoder with the input `position_ids`. */
  positions?: Positions;
  /** Default: the folder's `max_new_tokens`, else 128. */
  maxNewTokens?: number;
}

export interface AnswerOptions extends Omit<VisionPruneOptions, 'keep'>, CompletionOptions {
  /** Visual tokens to keep; `all` (the default without `keepRatio`): the model's own features, without pruning. */
  keep?: number | 'all';
}

/** Milliseconds. `vision` is the tower, or without pruning all that encodes the image; `prune` is everything that DeSAP adds. */
export interface AnswerTimings {
  readonly vision: number;
  readonly prune: number;
  readonly projector: number;
  readonly prefill: number;
  readonly decode: number;
}

/** What the language model makes of a prompt. */
export interface Completion {
  readonly text: string;
  /** Generated token ids. */
  readonly ids: readonly number[];
  /** Visual tokens that the language model saw. */
  readonly tokens: number;
  /** Tokens of the whole prompt, the visual ones included. */
  readonly promptTokens: number;
  readonly timings: Pick<AnswerTimings, 'prefill' | 'decode'>;
}

export interface Answer extends Completion {
  readonly timings: AnswerTimings;
  /** What was kept and why; absent for `keep: 'all'`. */
  readonly pruned?: PrunedFeatures;
}

/** Visual tokens of any origin: float32 [1, K, W], and which patches they stand for (default: all). */
export interface VisualTokens {
  readonly features: Tensor;
  readonly kept?: KeptPatches;
  /** Default `image`. */
  readonly medium?: EncodedImage['medium'];
}

/**
 * The loop from image and question to an answer, as the command line and the measurements need it: a LLaVA folder (the layout of
 * Transformers.js) over plain onnxruntime-node, greedy, one image or video and one question at a time. LLaVA-NeXT and Video-LLaVA differ
 * in how images are read.
 */
export class Llava {
  private constructor(
    readonly vision: VisionModel,
    private readonly images: ImageReader,
    private readonly embedTokens: InferenceSession,
    private readonly decoder: Decoder,
    private readonly chat: Chat,
  ) {}

  /** @throws DesapError as `openVisionModel`, {@link llavaImages}, {@link Chat.open} and {@link Decoder.open} */
  static async open(folder: string, { prompt, images: given, ...vision }: LlavaOptions): Promise<Llava> {
    await requireFolder(folder, 'a LLaVA model folder');
    const onnx = (name: string) => join(folder, 'onnx', onnxName(name, vision.dtype));
    return allOrNone(async (opened) => {
      const chat = await Chat.open(folder, prompt);
      const images = given ?? (await llavaImages(folder));
      const embedTokens = opened(await openSession(onnx('embed_tokens'), atRest()), (session) => session.release());
      const decoder = opened(await Decoder.open(onnx('decoder_model_merged')), (part) => part.dispose());
      return new Llava(await openVisionModel(folder, vision), images, embedTokens, decoder, chat);
    });
  }

  /** Encodes an image, once for all of its questions. */
  async see(image: ImageSource): Promise<SeenImage> {
    const read = await this.images.read(image);
    const start = performance.now();
    const [encoded] = await this.vision.encode(read.inputs);
    return new SeenImage(this, encoded, { read, milliseconds: performance.now() - start });
  }

  /** Answers one question about one image. */
  async answer(image: ImageSource, question: string, options?: AnswerOptions): Promise<Answer> {
    const ahead = this.#askAhead(question, options);
    const seen = await this.see(image);
    try {
      return await seen.answer(question, options, ahead);
    } finally {
      seen.dispose();
    }
  }

  /** The question of an image that is yet to be encoded; null where nothing is pruned. */
  #askAhead(question: string, { positions: _, maxNewTokens: __, keep, ...how }: AnswerOptions = {}): AskedAhead | null {
    if (isWhole({ keep, ...how })) return null;
    return askAhead(this.vision, how.taskShare === 0 ? null : checkQuestion(question), how);
  }

  /**
   * The answer of the language model to a question and visual tokens.
   * @throws DesapError `ERR_VALUE` for the question; `ERR_SHAPE` unless there is one row of features for each kept patch; `ERR_GRAPH`
   *   for original positions without the input `position_ids`
   */
  async complete(
    { features, kept = everyRow(features), medium }: VisualTokens,
    question: string,
    { positions = 'compact', maxNewTokens = this.chat.maxNewTokens }: CompletionOptions = {},
  ): Promise<Completion> {
    if (positions === 'original' && !this.decoder.takesPositions)
      throw new DesapError(
        'ERR_GRAPH',
        "positions: got 'original', wanted 'compact': this decoder has no input position_ids",
      );
    const start = performance.now();
    const { ids, at, visualId } = this.chat.prompt(checkQuestion(question), kept.assignment.length, medium);
    const prompt = compact({ inputIds: ids, imageTokenId: visualId, kept, positions });
    const embeds = await this.#embed(prompt.inputIds);
    const [tokens, width] = [kept.indices.length, embeds.dims[2]];
    if (features.type !== 'float32' || features.dims.join() !== `1,${tokens},${width}`)
      throw mismatch(
        'ERR_SHAPE',
        'features',
        `${features.type} [${features.dims.join(', ')}]`,
        `float32 [1, ${tokens}, ${width}]`,
      );
    (embeds.data as Float32Array).set(features.data as Float32Array, at * width);
    const merged = performance.now();
    const { ids: generated, timings } = await this.decoder.generate({
      embeds,
      positionIds: prompt.positionIds,
      nextPosition: prompt.nextPosition,
      maxNewTokens,
      endTokens: this.chat.endTokens,
      suppressed: this.chat.suppressed,
      embed: (next) => this.#embed(int64(next)),
    });
    return {
      text: this.chat.text(generated),
      ids: generated,
      tokens,
      promptTokens: prompt.inputIds.dims[1],
      timings: { prefill: timings.prefill + merged - start, decode: timings.decode },
    };
  }

  /** Options of `dart` with the prompt's tokens that are no image, unless they are given. */
  async withText(
    question: string,
    medium: EncodedImage['medium'],
    { methodOptions }: Pick<VisionPruneOptions, 'methodOptions'>,
  ): Promise<object> {
    const { ids, at } = this.chat.prompt(checkQuestion(question), 1, medium);
    const { data, dims } = await this.#embed(int64(ids.toSpliced(at, 1)));
    return { textEmbeddings: { data, dims: dims.slice(1) }, ...methodOptions };
  }

  async #embed(inputIds: Tensor): Promise<Tensor> {
    const [input, output] = [this.embedTokens.inputNames[0], this.embedTokens.outputNames[0]];
    return (await runSession(this.embedTokens, EMBED, { [input]: inputIds }))[output];
  }

  async dispose(): Promise<void> {
    await Promise.all([this.vision.dispose(), this.embedTokens.release(), this.decoder.dispose()]);
  }

  async [ASYNC_DISPOSE](): Promise<void> {
    await this.dispose();
  }
}

/** An encoded image that questions can be asked about; made by {@link Llava.see}. */
export class SeenImage implements Disposable {
  constructor(
    private readonly llava: Llava,
    readonly image: EncodedImage,
    private readonly about: { readonly read: ReadImage; readonly milliseconds: number },
  ) {}

  /** What encoding it took. */
  get milliseconds(): number {
    return this.about.milliseconds;
  }

  /** What can be drawn of it. */
  strips(): Promise<Strip[]> {
    return this.about.read.strips(this.image);
  }

  /**
   * @param ahead prunes for the question, where it was asked before the image was encoded
   * @throws DesapError as {@link EncodedImage.prune} and {@link Llava.complete}
   */
  async answer(
    question: string,
    { positions, maxNewTokens, keep, ...options }: AnswerOptions = {},
    ahead: AskedAhead | null = null,
  ): Promise<Answer> {
    const completion = { positions, maxNewTokens };
    const { medium } = this.image;
    if (isWhole({ keep, ...options })) {
      const start = performance.now();
      const features = await this.image.all();
      const encoded = { vision: this.milliseconds, prune: 0, projector: performance.now() - start };
      const { timings, ...answer } = await this.llava.complete({ features, medium }, question, completion);
      return { ...answer, timings: { ...encoded, ...timings } };
    }
    const asked = options.taskShare === 0 ? null : checkQuestion(question);
    const dart = options.method === 'dart' && { methodOptions: await this.llava.withText(question, medium, options) };
    const how = { ...options, ...dart, keep: keep as number | undefined };
    const pruned = await (ahead ? ahead(this.image, how) : this.image.prune(asked, how));
    const { vision, analyze, text, prune, projector } = pruned.timings;
    const { timings, ...answer } = await this.llava.complete(
      { features: pruned.features, kept: pruned, medium },
      question,
      completion,
    );
    return { ...answer, pruned, timings: { vision, prune: analyze + text + prune, projector, ...timings } };
  }

  dispose(): void {
    this.image.dispose();
  }

  [DISPOSE](): void {
    this.dispose();
  }
}

/** Whether all visual tokens stay: nothing is said of how many. */
function isWhole({ keep, keepRatio, method }: Pick<AnswerOptions, 'keep' | 'keepRatio' | 'method'>): boolean {
  return keep === 'all' || [keep, keepRatio, method].every((one) => one === undefined);
}

function everyRow({ dims }: Tensor): KeptPatches {
  const rows = dims.at(-2) ?? 0;
  return { indices: Int32Array.from({ length: rows }, (_, row) => row), assignment: new Int32Array(rows) };
}
