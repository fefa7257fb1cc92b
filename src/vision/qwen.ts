import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DEVICE_OPTIONS, deviceOptions } from '../devices/open.js';
import { DesapError, invalid, mismatch } from '../errors.js';
import { type Backend, type DeviceOptions, openBackend, type Pruner, type TextEmbeddings } from '../index.js';
import { relativeError } from '../onnx/head/compare.js';
import { type OrtModule, openGraph } from '../onnx/index.js';
import { FEATURES, MAIN_FEATURES, type QwenTower, readQwenTower, SALIENCY, TASK_ROWS } from '../onnx/qwen-graph.js';
import { type OptionNames, options } from '../options.js';
import { ortModule } from '../ort.js';
import { nonEmpty, object, oneOf } from '../tensor.js';
import { checkQuestion } from './check-question.js';
import { confirmFeatures, fileTrials, runTrials, type Sample } from './file-features.js';
import { VisionModelBase } from './model-base.js';
import { DTYPES, type Dtype, folderOf, type ModelConfig, readConfig } from './model-folder.js';
import { checkShared } from './model-options.js';
import { Once } from './once.js';
import { QuestionTable } from './question-table.js';
import { type Encoded, QwenImage } from './qwen-image.js';
import { asVideo, type Grid, imagesOf, type Patches, patchesOf, runsOf } from './qwen-inputs.js';
import { allOrNone, atRest, openSession, runSession, TENTATIVE } from './session.js';
import { floats, lastHalf, qwenTrials, waves } from './trial.js';
import type { Budget, InputNames, Tile, VisionInputs } from './vision-model.js';

export interface QwenVisionOptions extends DeviceOptions, Budget {
  /**
   * The model's folder, which holds `config.json`, and for questions `tokenizer.json` and `onnx/embed_tokens.onnx`; default: the one
   * that the encoder lies in.
   */
  model?: string;
  /** The model's config; default: `config.json` of its folder. */
  config?: ModelConfig;
  /** The form of the embedding table to prefer where the folder has several; default `fp32`. */
  dtype?: Dtype;
  /** A question as rows of the language model's embedding table; default: by tokenizer and table of the folder. */
  embedQuestion?: (question: string) => Promise<TextEmbeddings>;
  /** A pruner that is open already: its device is used, and stays the caller's. */
  pruner?: Pruner;
  /** Session options of ONNX Runtime, for every session; default: its own, with threads that do not spin between runs. */
  session?: InferenceSession.SessionOptions;
  /** The onnxruntime-node module; default: the installed one. */
  ort?: OrtModule;
}

export const QWEN_OPTIONS: OptionNames<QwenVisionOptions> = {
  ...DEVICE_OPTIONS,
  ...{ model: true, config: true, dtype: true, embedQuestion: true, pruner: true, keep: true, keepRatio: true },
  ...{ session: true, ort: true },
};
const RENAMED = { modelDir: 'model' };

/** What else is wanted of a file whose features differ. Frames of a video show it. */
export const QWEN_PREMISE = ', and in its last block attention of all patches of a frame';

/**
 * The vision encoder of Qwen2-VL, Qwen2.5-VL and what inherits from them, with pruning, over onnxruntime-node: an encoder of its own
 * without class token, two by two patches merged to one visual token. The unit of pruning is that token.
 *
 * The paper does not say what the task signal of such a model is. Here: the last block's decoupled attention through the merger, so
 * that it lies in the language model's space (A_d), against the language model's own embeddings of the question (S); both sides'
 * global vectors are normalised means. `taskShare: 0` leaves it out.
 *
 * ```ts
 * const vision = await QwenVision.open('Qwen2-VL-2B-Instruct/onnx/vision_encoder.onnx');
 * const [image] = await vision.encode({ pixelValues, imageGridThw });
 * const { features, indices } = await image.prune('is the fence wood or metal?', { keep: 64 });
 * ```
 */
export class QwenVision extends VisionModelBase<QwenImage> {
  readonly #table = new Once<QuestionTable>();
  /** Whether the images of one grid can be frames of one run. */
  readonly #several = new Once<boolean>();

  private constructor(
    /** Single kernels on the device. */
    readonly backend: Backend,
    private readonly ort: OrtModule,
    private readonly graph: QwenTower,
    private readonly session: InferenceSession,
    private readonly merge: number,
    private readonly options: QwenVisionOptions & { readonly model: string },
  ) {
    super('QwenVision', 'qwen', graph.tolerance, { keep: options.keep, keepRatio: options.keepRatio });
  }

  /**
   * Opens the encoder with further outputs, and checks on two trial images that it computes what the file by itself computes. The file
   * runs first, and is closed before the encoder is opened: memory holds the weights once.
   *
   * @param visionEncoder path of a `vision_encoder.onnx`
   * @throws DesapError `ERR_FILE`; `ERR_GRAPH` when the encoder is not built as expected, with what was looked for;
   *   `ERR_HEAD_MISMATCH` when it was not read right; `ERR_DEVICE_UNAVAILABLE`; `ERR_MISSING_PACKAGE`; `ERR_VALUE` for the options
   */
  static async open(visionEncoder: string, given: QwenVisionOptions = {}): Promise<QwenVision> {
    return QwenVision.#open(visionEncoder, given, samplesOf);
  }

  /** @internal The same without the check, for whoever has an open session of the file to compare with. */
  static async openBeside(visionEncoder: string, given: QwenVisionOptions = {}): Promise<QwenVision> {
    return QwenVision.#open(visionEncoder, given, async () => []);
  }

  static async #open(file: string, given: QwenVisionOptions, sample: typeof samplesOf): Promise<QwenVision> {
    nonEmpty('visionEncoder', file, 'the path of a Qwen-VL vision_encoder.onnx');
    const checked = options('options', withoutClip(given), QWEN_OPTIONS, RENAMED);
    const { model = folderOf(file), pruner } = checked;
    checkShared(checked);
    checkOwn({ ...checked, model });
    const ort = await ortModule(checked.ort);
    const session = atRest(checked.session);
    const config = checked.config ?? (await readConfig(model));
    requireFullAttention(config);
    const merge = config.vision_config?.spatial_merge_size ?? MERGE;
    const graph = readQwenTower(file, merge ** 2);
    return allOrNone(async (opened) => {
      const backend = pruner?.backend ?? opened(openBackend(deviceOptions(checked)), (own) => own.dispose());
      const samples = await sample(file, config, { ort, session });
      const tower = opened(await openGraph(ort, graph, session), (one) => one.release());
      const vision = new QwenVision(backend, ort, graph, tower, merge, { ...checked, model });
      const wanted = `those of the file by itself${QWEN_PREMISE}`;
      await confirmFeatures(vision, samples, { argument: 'visionEncoder', file, wanted });
      return vision;
    });
  }

  get device(): string {
    return this.backend.device;
  }

  get deviceDescription(): string {
    return this.backend.deviceDescription;
  }

  protected async encodeText(question: string): Promise<TextEmbeddings> {
    checkQuestion(question);
    const { ort } = this;
    const { embedQuestion, model, dtype, session } = this.options;
    if (embedQuestion) return embedQuestion(question);
    const table = await this.#table.get(() => QuestionTable.open(model, { ort, dtype, session: atRest(session) }));
    return table.embed(question);
  }

  protected async encodeImages(inputs: VisionInputs, names: InputNames): Promise<QwenImage[]> {
    const images = imagesOf(inputs, names, this.merge);
    const encoded = new Array<QwenImage>(images.length);
    for (const run of await this.#runs(images, names)) {
      const start = performance.now();
      const all = await this.#run(asVideo(run.map((i) => images[i])), names);
      const milliseconds = (performance.now() - start) / run.length;
      for (const [at, i] of run.entries())
        encoded[i] = new QwenImage(this, share(all, at, run.length), this.#tiles(images[i].grid), milliseconds);
    }
    return encoded;
  }

  /** Which images go into one run. */
  async #runs(images: readonly Patches[], names: InputNames): Promise<number[][]> {
    const runs = runsOf(images);
    const several = runs.find((run) => run.length > 1);
    if (several === undefined || (await this.#takesSeveral(images[several[0]], names))) return runs;
    return images.map((_, i) => [i]);
  }

  /** Whether the tower computes of two images what it computes of each: some exports let patches see those of all frames. */
  #takesSeveral({ pixels, grid }: Patches, { pixelValues }: InputNames): Promise<boolean> {
    return this.#several.get(async () => {
      const data = waves(2 * pixels.length);
      const [first, second] = [data.subarray(0, pixels.length), data.subarray(pixels.length)];
      const names = { argument: pixelValues, graph: GRAPH };
      const alone = await runSession(this.session, names, this.#feeds({ pixels: second, grid }));
      const video = asVideo([first, second].map((own) => ({ pixels: own, grid })));
      const both = await this.session.run(this.#feeds(video), TENTATIVE).catch(() => null);
      const isSame = (name: string) =>
        relativeError(lastHalf((both as typeof alone)[name]), floats(alone[name])) <= this.tolerance;
      return both !== null && [FEATURES, TASK_ROWS, SALIENCY].every(isSame);
    });
  }

  async #run(patches: Patches, { pixelValues: argument }: InputNames): Promise<Encoded> {
    const outputs = await runSession(this.session, { argument, graph: GRAPH }, this.#feeds(patches));
    const saliency = floats(outputs[SALIENCY]);
    const tokens = patchesOf(patches.grid) / this.merge ** 2;
    if (saliency.length !== tokens)
      throw mismatch('ERR_SHAPE', argument, `saliency of ${saliency.length} visual tokens`, `${tokens}`);
    const alike = MAIN_FEATURES in outputs ? floats(outputs[MAIN_FEATURES]) : null;
    return { features: floats(outputs[FEATURES]), rows: floats(outputs[TASK_ROWS]), saliency, alike };
  }

  #feeds({ pixels, grid }: Patches): Record<string, Tensor> {
    const { ort, session, graph } = this;
    const patches = patchesOf(grid);
    const feeds = { [graph.pixels]: new ort.Tensor('float32', pixels, [patches, pixels.length / patches]) };
    if (!session.inputNames.includes(graph.grid)) return feeds;
    return { ...feeds, [graph.grid]: new ort.Tensor('int64', BigInt64Array.from(grid, BigInt), [1, 3]) };
  }

  #tiles([frames, rows, columns]: Grid): Tile[] {
    const { merge } = this;
    return Array.from({ length: frames }, (_, frame) => ({ frame, rows: rows / merge, columns: columns / merge }));
  }

  protected async free(): Promise<void> {
    if (this.options.pruner === undefined) this.backend.dispose();
    const table = await this.#table.made();
    await Promise.all([this.session.release(), table?.release()]);
  }
}

/** One of several images' part of what a run says of all. */
function share({ features, alike, rows, saliency }: Encoded, index: number, count: number): Encoded {
  const part = (all: Float32Array) => all.subarray((index * all.length) / count, ((index + 1) * all.length) / count);
  return { features: part(features), alike: alike && part(alike), rows: part(rows), saliency: part(saliency) };
}

const GRAPH = 'the vision encoder';

/** The default of Qwen2-VL's config. */
const MERGE = 2;

/** What a file by itself computes of trial images. */
async function samplesOf(
  file: string,
  config: ModelConfig,
  { ort, session }: { ort: OrtModule; session: InferenceSession.SessionOptions },
): Promise<Sample[]> {
  const whole = await openSession(file, session, ort);
  try {
    return await runTrials(whole, fileTrials(whole, file, qwenTrials(whole, config)), { file, ort });
  } finally {
    await whole.release();
  }
}

/** Options for a CLIP tower, which this is none. */
function withoutClip<T extends object>(given: T & { clip?: unknown; encoding?: unknown }): T {
  if (typeof given !== 'object' || given === null) return given;
  const { clip, encoding, ...rest } = given;
  if (clip !== undefined)
    throw invalid('ERR_VALUE', 'clip', clip, 'none: the vision encoder of this model is no CLIP tower');
  if (encoding !== undefined && encoding !== 'qq')
    throw invalid('ERR_VALUE', 'encoding', encoding, "'qq', the only one for this model");
  return rest as unknown as T;
}

/** Checks the values of the options that other families do not have. */
function checkOwn({ model, config, dtype = 'fp32', embedQuestion }: QwenVisionOptions & { model: string }): void {
  nonEmpty('model', model, 'a model folder');
  if (config !== undefined) object('config', config, 'a config.json as an object');
  oneOf('dtype', dtype, DTYPES);
  if (embedQuestion !== undefined && typeof embedQuestion !== 'function')
    throw invalid('ERR_VALUE', 'embedQuestion', embedQuestion, 'a function');
}

function requireFullAttention({ vision_config: { depth, fullatt_block_indexes: full } = {} }: ModelConfig): void {
  if (!full || !depth || full.includes(depth - 1)) return;
  throw new DesapError(
    'ERR_GRAPH',
    `config.vision_config.fullatt_block_indexes: got ${full.join(', ')}, wanted the last block, ${depth - 1}, among them: its attention is to see the whole image`,
  );
}
