import { join } from 'node:path';
import { types } from 'node:util';
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { ASYNC_DISPOSE, DISPOSE } from '../../dispose-symbols.js';
import { DesapError, invalid, mismatch } from '../../errors.js';
import { requireFolder } from '../../files.js';
import { Lifetime } from '../../lifetime.js';
import { object, type TensorLike } from '../../tensor.js';
import { checkQuestion } from '../../vision/check-question.js';
import { compact } from '../../vision/compact.js';
import { isTensor, pixelValues } from '../../vision/image/pixel-values.js';
import { ImageProcessor, type ImageSource } from '../../vision/image-processor.js';
import { PrunedVision, type VisionAnalysis } from '../../vision/llava.js';
import { allOrNone, atRest, openSession, runSession } from '../../vision/session.js';
import type { Answer, AnswerOptions, AnswerTimings, LlavaOptions, VisualTokens } from './answer.js';
import { Chat } from './chat.js';
import { Decoder, int64 } from './decoder.js';

const VISION = { argument: 'image', graph: 'the vision encoder' };
const EMBED = { argument: 'inputIds', graph: 'embed_tokens.onnx' };

interface Parts {
  readonly vision: PrunedVision | null;
  readonly embedTokens: InferenceSession;
  readonly decoder: Decoder;
  readonly chat: Chat;
  readonly images: ImageProcessor;
}

/** What the language model makes of a prompt. */
type Completion = Omit<Answer, 'timings'> & { readonly timings: Pick<AnswerTimings, 'prefill' | 'decode'> };

/**
 * A LLaVA folder (the Transformers.js layout: `onnx/vision_encoder.onnx`, `embed_tokens.onnx`, `decoder_model_merged.onnx`, and the
 * tokenizer's and processor's JSON files) over plain onnxruntime-node, with pruning between vision tower and projector.
 * Greedy decoding, one image and one question at a time.
 *
 * ONNX Runtime blocks Node's event loop while a session runs; a server puts the whole pipeline into a worker thread.
 *
 * ```ts
 * const llava = await Llava.open('llava-1.5-7b', { clip: 'clip-vit-large-patch14-336' });
 * const { text } = await llava.answer('photo.jpg', 'is the fence wood or metal?', { keep: 64 });
 * ```
 */
export class Llava {
  #plain: Promise<InferenceSession> | null = null;
  /** @internal Its images use it too. */
  readonly life = new Lifetime('Llava');

  private constructor(
    private readonly folder: string,
    private readonly options: LlavaOptions,
    private readonly parts: Parts,
  ) {}

  /**
   * @throws DesapError `ERR_FILE` for missing or unreadable files, `ERR_GRAPH` for files of another kind, `ERR_HEAD_MISMATCH` when the
   *   CLIP folder is not that of the vision tower, `ERR_MISSING_PACKAGE`, `ERR_DEVICE_UNAVAILABLE`
   */
  static async open(folder: string, given: LlavaOptions = {}): Promise<Llava> {
    const options = { ...given, session: atRest(object('options', given).session) };
    await requireFolder(folder, 'a LLaVA model folder');
    const onnx = (name: string) => join(folder, 'onnx', `${name}.onnx`);
    return allOrNone(async (opened) => {
      const parts: Parts = {
        chat: await Chat.open(folder, options.prompt),
        images: await ImageProcessor.open(folder),
        embedTokens: opened(await openSession(onnx('embed_tokens'), options.session), (session) => session.release()),
        decoder: opened(await Decoder.open(onnx('decoder_model_merged'), options.session), (decoder) =>
          decoder.dispose(),
        ),
        vision: options.clip
          ? await PrunedVision.open(onnx('vision_encoder'), { ...options, clip: options.clip, keep: undefined })
          : null,
      };
      return new Llava(folder, options, parts);
    });
  }

  /** The pruning vision encoder; null without a CLIP folder. */
  get vision(): PrunedVision | null {
    return this.parts.vision;
  }

  /** Turns images into `pixel_values`. */
  get images(): ImageProcessor {
    return this.parts.images;
  }

  /**
   * An image in any form, or `pixel_values` [1, 3, H, W], for many questions; the encoder runs once for all of them.
   * @throws DesapError as {@link ImageProcessor.process}; `ERR_SHAPE`, `ERR_DTYPE` for a tensor that is not the pixels of one image;
   *   `ERR_DISPOSED`
   */
  async see(image: ImageSource | TensorLike): Promise<LlavaImage> {
    return this.life.call(() => this.#see(image));
  }

  async #see(image: ImageSource | TensorLike): Promise<LlavaImage> {
    return new LlavaImage(this, isTensor(image) ? pixelValues(image) : await this.images.process(image));
  }

  /**
   * Answers one question about one image.
   * @throws DesapError as {@link Llava.see}; `ERR_VALUE` for an empty question, `keep`, `positions`, ...
   */
  async answer(image: ImageSource | TensorLike, question: string, options: AnswerOptions = {}): Promise<Answer> {
    return this.life.call(() => this.#answer(image, question, options));
  }

  async #answer(image: ImageSource | TensorLike, question: string, options: AnswerOptions): Promise<Answer> {
    const seen = await this.see(image);
    try {
      return await seen.answer(question, options);
    } finally {
      seen.dispose();
    }
  }

  /** The default of the option `keep`. */
  get keep(): number | 'all' {
    return this.options.keep ?? 'all';
  }

  /** Features of all patches [1, P, W] by the folder's own `vision_encoder.onnx`, and the milliseconds that it took. */
  async encodeAll(pixels: Tensor): Promise<{ features: Tensor; vision: number }> {
    return this.life.call(() => this.#encodeAll(pixels));
  }

  async #encodeAll(pixels: Tensor): Promise<{ features: Tensor; vision: number }> {
    this.#plain ??= openSession(join(this.folder, 'onnx', 'vision_encoder.onnx'), this.options.session);
    const session = await this.#plain;
    const start = performance.now();
    const outputs = await runSession(session, VISION, { [session.inputNames[0]]: pixels });
    return { features: outputs[session.outputNames[0]], vision: performance.now() - start };
  }

  /**
   * The answer of the language model to a question and visual tokens of any origin.
   * @throws DesapError `ERR_SHAPE` when there is not one row of features for each kept patch; `ERR_GRAPH` for original positions that
   *   the decoder cannot take
   */
  async complete(
    { features, kept }: VisualTokens,
    question: string,
    options: Pick<AnswerOptions, 'positions' | 'maxNewTokens'> = {},
  ): Promise<Completion> {
    return this.life.call(() => this.#complete({ features, kept }, question, options));
  }

  async #complete(
    { features, kept }: VisualTokens,
    question: string,
    options: Pick<AnswerOptions, 'positions' | 'maxNewTokens'>,
  ): Promise<Completion> {
    const { decoder, chat } = this.parts;
    checkQuestion(question);
    const positions = object('options', options).positions ?? 'compact';
    if (positions === 'original' && !decoder.takesPositions)
      throw new DesapError(
        'ERR_GRAPH',
        'positions: got original, wanted compact: this decoder has no input position_ids',
      );
    const rows = features.dims.at(-2) ?? 0;
    const patches = kept ?? {
      indices: Int32Array.from({ length: rows }, (_, i) => i),
      assignment: new Int32Array(rows),
    };
    if (rows !== patches.indices.length)
      throw invalid('ERR_SHAPE', 'features.dims', features.dims, `${patches.indices.length} rows, one per kept patch`);

    const start = performance.now();
    const { ids, at } = chat.prompt(question, patches.assignment.length);
    const prompt = compact({ inputIds: ids, imageTokenId: chat.imageTokenId, kept: patches, positions });
    const embeds = await this.#embed(prompt.inputIds);
    const width = embeds.dims[2];
    if (!types.isFloat32Array(embeds.data) || !types.isFloat32Array(features.data) || features.dims.at(-1) !== width)
      throw mismatch(
        'ERR_SHAPE',
        'features',
        `${features.type} [${features.dims.join(', ')}]`,
        `float32 [K, ${width}]`,
      );
    embeds.data.set(features.data, at * width);
    const merged = performance.now();
    const { ids: generated, timings } = await decoder.generate({
      embeds,
      positionIds: prompt.positionIds,
      nextPosition: prompt.nextPosition,
      maxNewTokens: options.maxNewTokens ?? chat.maxNewTokens,
      endTokens: chat.endTokens,
      embed: (next) => this.#embed(int64(next)),
    });
    return {
      text: chat.text(generated),
      ids: generated,
      tokens: rows,
      promptTokens: prompt.inputIds.dims[1],
      timings: { prefill: timings.prefill + merged - start, decode: timings.decode },
    };
  }

  async #embed(inputIds: Tensor): Promise<Tensor> {
    const session = this.parts.embedTokens;
    const outputs = await runSession(session, EMBED, { [session.inputNames[0]]: inputIds });
    return outputs[session.outputNames[0]];
  }

  /** Frees the sessions and the pruner, after the calls under way. Safe to call again. */
  dispose(): Promise<void> {
    return this.life.end(async () => {
      const { vision, embedTokens, decoder } = this.parts;
      const plain = await this.#plain?.catch(() => null);
      await Promise.all([vision?.dispose(), embedTokens.release(), decoder.dispose(), plain?.release()]);
    });
  }

  async [ASYNC_DISPOSE](): Promise<void> {
    await this.dispose();
  }
}

/** One image that questions can be asked about; made by {@link Llava.see}. */
export class LlavaImage implements Disposable {
  readonly #life = new Lifetime('LlavaImage');
  #analysis: Promise<VisionAnalysis> | null = null;
  #all: ReturnType<Llava['encodeAll']> | null = null;

  /** @internal */
  constructor(
    private readonly llava: Llava,
    private readonly pixels: Tensor,
  ) {}

  /**
   * @throws as {@link Llava.answer}
   */
  async answer(question: string, options: AnswerOptions = {}): Promise<Answer> {
    return this.#life.call(() => this.llava.life.call(() => this.#answer(question, options)));
  }

  async #answer(question: string, options: AnswerOptions): Promise<Answer> {
    object('options', options);
    checkQuestion(question);
    const keep = options.keep ?? this.llava.keep;
    if (keep === 'all') return this.#answerAll(question, options);
    const analysis = await this.#analyze();
    const pruned = await analysis.prune(question, { ...options, keep });
    const { timings, ...answer } = await this.llava.complete(
      { features: pruned.features, kept: pruned },
      question,
      options,
    );
    const { vision, analyze, text, prune, projector } = pruned.timings;
    return { ...answer, pruned, timings: { vision, prune: analyze + text + prune, projector, ...timings } };
  }

  /** The image's part of the pruning, computed once. */
  async analyze(): Promise<VisionAnalysis> {
    return this.#life.call(() => this.#analyze());
  }

  #analyze(): Promise<VisionAnalysis> {
    const { vision } = this.llava;
    if (!vision)
      throw mismatch('ERR_VALUE', 'keep', 'a number without a CLIP folder', `'all', or the option clip at Llava.open`);
    this.#analysis ??= vision.analyze(this.pixels);
    return this.#analysis;
  }

  async #answerAll(question: string, options: AnswerOptions): Promise<Answer> {
    this.#all ??= this.llava.encodeAll(this.pixels);
    const { features, vision } = await this.#all;
    const { timings, ...answer } = await this.llava.complete({ features }, question, options);
    return { ...answer, timings: { vision, prune: 0, projector: 0, ...timings } };
  }

  /** Frees what the device holds of the image, after the calls under way. Safe to call again. */
  dispose(): void {
    this.#life.end(async () => (await this.#analysis?.catch(() => null))?.dispose());
  }

  [DISPOSE](): void {
    this.dispose();
  }
}
