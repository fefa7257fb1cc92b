import { join } from 'node:path';
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DesapError, invalid } from '../errors.js';
import type { DeviceOptions } from '../index.js';
import { optional } from '../optional.js';
import { compact, type KeptPatches, type Positions } from './compact.js';
import { Decoder, int64 } from './decoder.js';
import { isFile, readJson, requireFolder } from './files.js';
import { ImageProcessor, type ImageSource } from './image.js';
import { type PromptForm, promptForm, writePrompt } from './prompt.js';
import { type PrunedFeatures, PrunedVision, type VisionAnalysis, type VisionPruneOptions } from './pruned-vision.js';
import { checkQuestion } from './question.js';
import { allOrNone, openSession } from './session.js';

export interface LlavaOptions extends DeviceOptions {
  /** CLIP folder of the same vision tower (and text tower); without it only `keep: 'all'` works. */
  clip?: string;
  /** Default of the option `keep` of every answer: a count, a fraction below 1, or `all` (the default). */
  keep?: number | 'all';
  /** Prompt with `{image}` and `{question}`; default: read from the folder's chat template. */
  prompt?: PromptForm;
  /** Session options of ONNX Runtime, for every session. */
  session?: InferenceSession.SessionOptions;
}

export interface AnswerOptions extends Omit<VisionPruneOptions, 'keep'> {
  /** Visual tokens to keep, or `all`: the model's own path, without pruning. */
  keep?: number | 'all';
  /** Default `compact`. `original` needs a decoder with the input `position_ids`. */
  positions?: Positions;
  /** Default: the folder's `max_new_tokens`, else 128. */
  maxNewTokens?: number;
}

/** Milliseconds. `vision` is the tower (without pruning: the projector too); `prune` is everything that DeSAP adds. */
export interface AnswerTimings {
  readonly vision: number;
  readonly prune: number;
  readonly projector: number;
  readonly prefill: number;
  readonly decode: number;
}

export interface Answer {
  readonly text: string;
  /** Generated token ids. */
  readonly ids: readonly number[];
  /** Visual tokens that the language model saw. */
  readonly tokens: number;
  /** Tokens of the whole prompt, the visual ones included. */
  readonly promptTokens: number;
  readonly timings: AnswerTimings;
  /** What was kept and why; absent for `keep: 'all'`. */
  readonly pruned?: PrunedFeatures;
}

/** What {@link Llava.complete} adds to a prompt in place of the picture. */
export interface VisualTokens {
  /** Projected features, float32 [K, W] or [1, K, W]. */
  readonly features: Tensor;
  /** Which patches they stand for; default: all of them. */
  readonly kept?: KeptPatches;
}

interface Files {
  readonly imageToken: string;
  readonly imageTokenId: number;
  readonly endTokens: ReadonlySet<number>;
  readonly maxNewTokens: number;
}

interface Parts {
  readonly vision: PrunedVision | null;
  readonly embedTokens: InferenceSession;
  readonly decoder: Decoder;
  readonly tokenizer: { encode(text: string): { ids: number[] }; decode(ids: number[], o?: object): string };
  readonly images: ImageProcessor;
  readonly files: Files;
  readonly form: PromptForm;
}

/**
 * A LLaVA folder (the Transformers.js layout: `onnx/vision_encoder.onnx`, `embed_tokens.onnx`, `decoder_model_merged.onnx`, and the
 * tokenizer's and processor's JSON files) over plain onnxruntime-node, with pruning between vision tower and projector.
 * Greedy decoding, one picture and one question at a time.
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

  private constructor(
    private readonly folder: string,
    private readonly options: LlavaOptions,
    private readonly parts: Parts,
  ) {}

  /**
   * @throws DesapError `ERR_FILE` for missing or unreadable files, `ERR_GRAPH` for files of another kind, `ERR_HEAD_MISMATCH` when the
   *   CLIP folder is not that of the vision tower, `ERR_MISSING_PACKAGE`, `ERR_DEVICE_UNAVAILABLE`
   */
  static async open(folder: string, options: LlavaOptions = {}): Promise<Llava> {
    await requireFolder(folder, 'a LLaVA model folder');
    const onnx = (name: string) => join(folder, 'onnx', `${name}.onnx`);
    const [config, generation, tokenizerFile, tokenizerConfig] = await Promise.all([
      readJson<ModelConfig>(join(folder, 'config.json')),
      readGeneration(join(folder, 'generation_config.json')),
      readJson<object>(join(folder, 'tokenizer.json')),
      readJson<{ chat_template?: string }>(join(folder, 'tokenizer_config.json')),
    ]);
    const { Tokenizer } = await optional(
      () => import('@huggingface/tokenizers'),
      '@huggingface/tokenizers',
      'reading prompts',
    );
    const tokenizer = new Tokenizer(tokenizerFile, tokenizerConfig);
    const files = modelFiles(config, generation, (id) => tokenizer.id_to_token(id));
    return allOrNone(async (opened) => {
      const parts: Parts = {
        tokenizer,
        files,
        form: options.prompt ?? promptForm(tokenizerConfig.chat_template, files.imageToken),
        images: await ImageProcessor.open(folder),
        embedTokens: opened(await openSession(onnx('embed_tokens'), options.session), (session) => session.release()),
        decoder: opened(await Decoder.open(onnx('decoder_model_merged'), options.session), (decoder) =>
          decoder.dispose(),
        ),
        vision: options.clip
          ? await PrunedVision.open(onnx('vision_encoder'), { ...options, clip: options.clip })
          : null,
      };
      return new Llava(folder, options, parts);
    });
  }

  /** The pruning vision encoder; null without a CLIP folder. */
  get vision(): PrunedVision | null {
    return this.parts.vision;
  }

  /** Turns pictures into `pixel_values`. */
  get images(): ImageProcessor {
    return this.parts.images;
  }

  /** A picture (path or bytes), or `pixel_values` [1, 3, H, W], for many questions; the encoder runs once for all of them. */
  async see(image: ImageSource | Tensor): Promise<LlavaImage> {
    const pixels = typeof image === 'string' || image instanceof Uint8Array ? await this.images.process(image) : image;
    return new LlavaImage(this, pixels);
  }

  /**
   * Answers one question about one picture.
   * @throws DesapError as {@link ImageProcessor.process}; `ERR_VALUE` for an empty question, `keep`, `positions`, ...
   */
  async answer(image: ImageSource | Tensor, question: string, options: AnswerOptions = {}): Promise<Answer> {
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
    this.#plain ??= openSession(join(this.folder, 'onnx', 'vision_encoder.onnx'), this.options.session);
    const session = await this.#plain;
    const start = performance.now();
    const outputs = await session.run({ [session.inputNames[0]]: pixels });
    return { features: outputs[session.outputNames[0]] as Tensor, vision: performance.now() - start };
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
  ): Promise<Omit<Answer, 'timings'> & { readonly timings: Pick<AnswerTimings, 'prefill' | 'decode'> }> {
    const { decoder, files, tokenizer, form } = this.parts;
    checkQuestion(question);
    const positions = options.positions ?? 'compact';
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
    const ids = tokenizer.encode(writePrompt(form, files.imageToken, question)).ids;
    const at = ids.indexOf(files.imageTokenId);
    if (at < 0 || ids.includes(files.imageTokenId, at + 1))
      throw invalid(
        'ERR_VALUE',
        'question',
        `a prompt without exactly one ${files.imageToken}`,
        `a question without ${files.imageToken}`,
      );
    ids.splice(at, 1, ...new Array<number>(patches.assignment.length).fill(files.imageTokenId));
    const prompt = compact({ inputIds: ids, imageTokenId: files.imageTokenId, kept: patches, positions });
    const embeds = await this.#embed(prompt.inputIds);
    const width = embeds.dims[2];
    if (
      !(embeds.data instanceof Float32Array) ||
      !(features.data instanceof Float32Array) ||
      features.dims.at(-1) !== width
    )
      throw invalid('ERR_SHAPE', 'features', `${features.type} [${features.dims.join(', ')}]`, `float32 [K, ${width}]`);
    embeds.data.set(features.data, at * width);
    const merged = performance.now();
    const { ids: generated, timings } = await decoder.generate({
      embeds,
      positionIds: prompt.positionIds,
      nextPosition: prompt.nextPosition,
      maxNewTokens: options.maxNewTokens ?? files.maxNewTokens,
      endTokens: files.endTokens,
      embed: (next) => this.#embed(int64(next)),
    });
    return {
      text: tokenizer.decode([...generated], { skip_special_tokens: true }).trim(),
      ids: generated,
      tokens: rows,
      promptTokens: prompt.inputIds.dims[1],
      timings: { prefill: timings.prefill + merged - start, decode: timings.decode },
    };
  }

  async #embed(inputIds: Tensor): Promise<Tensor> {
    const session = this.parts.embedTokens;
    const outputs = await session.run({ [session.inputNames[0]]: inputIds });
    return outputs[session.outputNames[0]] as Tensor;
  }

  /** Frees the sessions and the pruner. */
  async dispose(): Promise<void> {
    const { vision, embedTokens, decoder } = this.parts;
    await Promise.all([vision?.dispose(), embedTokens.release(), decoder.dispose()]);
    await this.#plain?.then((session) => session.release());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}

/** One picture that questions can be asked about; made by {@link Llava.see}. */
export class LlavaImage implements Disposable {
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
    checkQuestion(question);
    const keep = options.keep ?? this.llava.keep;
    if (keep === 'all') return this.#answerAll(question, options);
    const analysis = await this.analyze();
    const pruned = await analysis.prune(question, { ...options, keep });
    const { timings, ...answer } = await this.llava.complete(
      { features: pruned.features, kept: pruned },
      question,
      options,
    );
    const { vision, analyze, text, prune, projector } = pruned.timings;
    return { ...answer, pruned, timings: { vision, prune: analyze + text + prune, projector, ...timings } };
  }

  /** The picture's part of the pruning, computed once. */
  analyze(): Promise<VisionAnalysis> {
    const { vision } = this.llava;
    if (!vision)
      throw invalid('ERR_VALUE', 'keep', 'a number without a CLIP folder', `'all', or the option clip at Llava.open`);
    this.#analysis ??= vision.analyze(this.pixels);
    return this.#analysis;
  }

  async #answerAll(question: string, options: AnswerOptions): Promise<Answer> {
    this.#all ??= this.llava.encodeAll(this.pixels);
    const { features, vision } = await this.#all;
    const { timings, ...answer } = await this.llava.complete({ features }, question, options);
    return { ...answer, timings: { vision, prune: 0, projector: 0, ...timings } };
  }

  /** Frees what the device holds of the picture. */
  dispose(): void {
    this.#analysis?.then(
      (analysis) => analysis.dispose(),
      () => {},
    );
    this.#analysis = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

interface GenerationConfig {
  eos_token_id?: number | number[];
  max_new_tokens?: number;
}

interface ModelConfig extends GenerationConfig {
  image_token_id?: number;
  image_token_index?: number;
  text_config?: GenerationConfig;
}

async function readGeneration(path: string): Promise<GenerationConfig> {
  return (await isFile(path)) ? readJson<GenerationConfig>(path) : {};
}

function modelFiles(
  config: ModelConfig,
  generation: GenerationConfig,
  token: (id: number) => string | undefined,
): Files {
  const imageTokenId = config.image_token_id ?? config.image_token_index;
  const imageToken = imageTokenId === undefined ? undefined : token(imageTokenId);
  if (imageTokenId === undefined || imageToken === undefined)
    throw new DesapError(
      'ERR_FILE',
      `config.json: got image_token_id ${imageTokenId}, wanted the id of a token of tokenizer.json`,
    );
  const end = generation.eos_token_id ?? config.eos_token_id ?? config.text_config?.eos_token_id ?? [];
  return {
    imageToken,
    imageTokenId,
    endTokens: new Set([end].flat()),
    maxNewTokens: generation.max_new_tokens ?? 128,
  };
}
