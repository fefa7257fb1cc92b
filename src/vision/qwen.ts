import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DEVICE_OPTIONS } from '../devices/open.js';
import { DesapError, invalid, mismatch } from '../errors.js';
import {
  type Backend,
  type DeviceOptions,
  ImageAnalysis,
  openBackend,
  type Pruner,
  type TensorLike,
  type TextEmbeddings,
} from '../index.js';
import { relativeError } from '../onnx/head/compare.js';
import { type OrtModule, openGraph } from '../onnx/index.js';
import { FEATURES, MAIN_FEATURES, type QwenTower, readQwenTower, SALIENCY, TASK_ROWS } from '../onnx/qwen-graph.js';
import { type OptionNames, options } from '../options.js';
import { loadOrt } from '../ort.js';
import { float32, matrix, vector, widened } from '../tensor.js';
import { checkQuestion } from './check-question.js';
import { deviceOptions } from './device-options.js';
import { confirmFeatures } from './file-features.js';
import { type Analyzed, EncodedImageBase, type Kept } from './image-base.js';
import { VisionModelBase } from './model-base.js';
import { type Dtype, folderOf, type ModelConfig, readConfig } from './model-folder.js';
import { QuestionTable } from './question-table.js';
import { asFilm, type Grid, imagesOf, type Patches, patchesOf, runsOf } from './qwen-inputs.js';
import { allOrNone, atRest, openSession, runSession } from './session.js';
import { qwenTrials, waves } from './trial.js';
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

const NAMES: OptionNames<QwenVisionOptions> = {
  ...DEVICE_OPTIONS,
  ...{ model: true, config: true, dtype: true, embedQuestion: true, pruner: true, keep: true, keepRatio: true },
  ...{ session: true, ort: true },
};
const RENAMED = { modelDir: 'model' };

/** What the tower says of M visual tokens, in the grid's order. */
interface Encoded {
  /** [M, W]. */
  readonly features: Float32Array;
  /** The columns of the last block, [M, W'], where the features have others too; otherwise null. */
  readonly alike: Float32Array | null;
  /** The decoupled attention in the language model's space, [M, W']. */
  readonly rows: Float32Array;
  /** [M]. */
  readonly saliency: Float32Array;
}

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
  #table: Promise<QuestionTable> | null = null;
  /** Whether the images of one grid can be frames of one run; null: not asked yet. */
  #together: Promise<boolean> | null = null;

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
   * Opens the encoder with further outputs, and checks on two trial images that it computes what the file by itself computes.
   *
   * @param visionEncoder path of a `vision_encoder.onnx`
   * @throws DesapError `ERR_FILE`; `ERR_GRAPH` when the encoder is not built as expected, with what was looked for;
   *   `ERR_HEAD_MISMATCH` when it was not read right; `ERR_DEVICE_UNAVAILABLE`; `ERR_MISSING_PACKAGE`; `ERR_VALUE` for the options
   */
  static async open(visionEncoder: string, given: QwenVisionOptions = {}): Promise<QwenVision> {
    const vision = await QwenVision.openBeside(visionEncoder, given);
    try {
      const { ort, options } = vision;
      const file = await openSession(visionEncoder, atRest(options.session), ort);
      try {
        const trials = qwenTrials(file, await configOf(options));
        const wanted = 'those of the file by itself, and in its last block attention of all patches of a frame';
        await confirmFeatures(vision, file, trials, { argument: 'visionEncoder', file: visionEncoder, wanted, ort });
      } finally {
        await file.release();
      }
      return vision;
    } catch (error) {
      await vision.dispose();
      throw error;
    }
  }

  /** @internal The same without the check, for whoever has an open session of the file to compare with. */
  static async openBeside(visionEncoder: string, given: QwenVisionOptions = {}): Promise<QwenVision> {
    const checked = options('options', withoutClip(given), NAMES, RENAMED);
    const { model = folderOf(visionEncoder), ort = await loadOrt(), pruner } = checked;
    const config = await configOf({ ...checked, model });
    requireFullAttention(config);
    const merge = config.vision_config?.spatial_merge_size ?? MERGE;
    const graph = readQwenTower(visionEncoder, merge ** 2);
    return allOrNone(async (opened) => {
      const session = opened(await openGraph(ort, graph, atRest(checked.session)), (one) => one.release());
      const backend = pruner?.backend ?? opened(openBackend(deviceOptions(checked)), (own) => own.dispose());
      return new QwenVision(backend, ort, graph, session, merge, { ...checked, model });
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
    this.#table ??= QuestionTable.open(model, { ort, dtype, session: atRest(session) });
    return (await this.#table).embed(question);
  }

  protected async encodeImages(inputs: VisionInputs, names: InputNames): Promise<QwenImage[]> {
    const images = imagesOf(inputs, names, this.merge);
    const encoded = new Array<QwenImage>(images.length);
    for (const run of await this.#runs(images)) {
      const start = performance.now();
      const outputs = await this.#run(asFilm(run.map((i) => images[i])), names.pixelValues);
      const milliseconds = (performance.now() - start) / run.length;
      for (const [at, i] of run.entries()) {
        const part = (all: Float32Array) =>
          all.subarray((at * all.length) / run.length, ((at + 1) * all.length) / run.length);
        const { features, alike, rows, saliency } = outputs;
        const own = {
          features: part(features),
          alike: alike && part(alike),
          rows: part(rows),
          saliency: part(saliency),
        };
        encoded[i] = new QwenImage(this, own, this.#tiles(images[i].grid), milliseconds);
      }
    }
    return encoded;
  }

  async #runs(images: readonly Patches[]): Promise<number[][]> {
    const runs = runsOf(images);
    const several = runs.find((run) => run.length > 1);
    if (several === undefined || (await this.#takesSeveral(images[several[0]]))) return runs;
    return images.map((_, i) => [i]);
  }

  /** Whether the tower computes of two images what it computes of each: some exports let patches see those of all frames. */
  #takesSeveral({ pixels, grid }: Patches): Promise<boolean> {
    this.#together ??= (async () => {
      const data = waves(2 * pixels.length);
      const [first, second] = [0, 1].map((i) => ({
        pixels: data.subarray(i * pixels.length, (i + 1) * pixels.length),
        grid,
      }));
      const alone = await this.#run(second, 'pixelValues');
      const both = await this.#run(asFilm([first, second]), 'pixelValues').catch(() => null);
      const same = (name: 'features' | 'rows' | 'saliency') =>
        both !== null && relativeError(both[name].subarray(both[name].length / 2), alone[name]) <= this.tolerance;
      return same('features') && same('rows') && same('saliency');
    })();
    return this.#together;
  }

  async #run({ pixels, grid }: Patches, argument: string): Promise<Encoded> {
    const { ort, session } = this;
    const patches = patchesOf(grid);
    const feeds: Record<string, Tensor> = {
      [this.graph.pixels]: new ort.Tensor('float32', pixels, [patches, pixels.length / patches]),
    };
    if (session.inputNames.includes(this.graph.grid))
      feeds[this.graph.grid] = new ort.Tensor('int64', BigInt64Array.from(grid, BigInt), [1, 3]);
    const outputs = await runSession(session, { argument, graph: 'the vision encoder' }, feeds);
    const [features, rows, saliency, alike] = [FEATURES, TASK_ROWS, SALIENCY, MAIN_FEATURES].map(
      (name) => outputs[name]?.data as Float32Array | undefined,
    );
    const tokens = patches / this.merge ** 2;
    if (!features || !rows || saliency?.length !== tokens)
      throw mismatch('ERR_SHAPE', argument, `saliency of ${saliency?.length} visual tokens`, `${tokens}`);
    return { features, rows, saliency, alike: alike ?? null };
  }

  #tiles([frames, rows, columns]: Grid): Tile[] {
    return Array.from({ length: frames }, (_, frame) => ({
      ...{ frame, rows: rows / this.merge, columns: columns / this.merge },
    }));
  }

  protected async free(): Promise<void> {
    if (this.options.pruner === undefined) this.backend.dispose();
    const table = await this.#table?.catch(() => null);
    await Promise.all([this.session.release(), table?.release()]);
  }
}

/** One encoded image, or film; made by {@link QwenVision.encode}. */
export class QwenImage extends EncodedImageBase {
  #analysis: Promise<Analyzed> | null = null;

  /** @internal */
  constructor(
    private readonly vision: QwenVision,
    private readonly encoded: Encoded,
    /** One tile for each frame. */
    readonly tiles: readonly Tile[],
    milliseconds: number,
  ) {
    super('QwenImage', vision, milliseconds);
  }

  /** P, visual tokens: of two by two patches each. */
  get tokenCount(): number {
    return this.encoded.saliency.length;
  }

  protected analyze(): Promise<Analyzed> {
    this.#analysis ??= this.#analyze().catch((error) => {
      this.#analysis = null;
      throw error;
    });
    return this.#analysis;
  }

  async #analyze(): Promise<Analyzed> {
    const { features, alike, rows, saliency } = this.encoded;
    const start = performance.now();
    const parts = { patchEmbeddings: this.#matrix(rows), saliency, features: this.#matrix(alike ?? features) };
    const analysis = await ImageAnalysis.from(parts, this.vision.backend);
    return { analysis, milliseconds: performance.now() - start };
  }

  /**
   * Text rows as wide as the visual ones: where features are packed with further columns, the text has zeros there. Their end is the
   * given one; else the mean of all rows, as an embedding of an end token would know nothing of the others.
   */
  protected override comparable({ embeddings, endOfText }: TextEmbeddings): TextEmbeddings {
    const width = this.encoded.rows.length / this.tokenCount;
    const given = matrix('question', embeddings);
    const columns = Math.min(given.cols, width);
    const rows = narrowed(widened(given), given.cols, columns);
    const end = endOfText ?? meanDirection(rows, columns);
    return {
      embeddings: float32(rows, [given.rows, columns]),
      endOfText: typeof end === 'number' ? end : narrowed(vector('endOfText', end), end.length, width),
    };
  }

  protected async connect({ tokens, assignment, counts }: Kept): Promise<Tensor> {
    const { features, alike } = this.encoded;
    const width = features.length / this.tokenCount;
    const rows = alike ? meanRows(features, width, assignment, counts) : (tokens.data as Float32Array);
    return float32(rows, [1, counts.length, width]);
  }

  protected async everything(): Promise<Tensor> {
    const { data, dims } = this.#matrix(this.encoded.features);
    return float32((data as Float32Array).slice(), [1, ...dims]);
  }

  #matrix(rows: Float32Array): TensorLike {
    return float32(rows, [this.tokenCount, rows.length / this.tokenCount]);
  }

  protected async free(): Promise<void> {
    (await this.#analysis?.catch(() => null))?.analysis.dispose();
  }
}

/** The first columns of rows whose others are zeros. */
function narrowed(rows: Float32Array, from: number, to: number): Float32Array {
  if (from <= to) return rows;
  if (rows.some((value, i) => i % from >= to && value !== 0))
    throw mismatch('ERR_SHAPE', 'question', `${from} columns`, `${to}, or zeros in the columns behind`);
  return rows.filter((_, i) => i % from < to);
}

/** The mean of some rows, each at unit length. */
function meanDirection(rows: Float32Array, width: number): Float32Array {
  const sum = new Float64Array(width);
  for (let at = 0; at < rows.length; at += width) {
    const row = rows.subarray(at, at + width);
    const length = Math.sqrt(row.reduce((total, value) => total + value * value, 0));
    for (let c = 0; c < width; c++) sum[c] += row[c] / Math.max(length, SHORTEST);
  }
  return Float32Array.from(sum);
}

/** Shorter rows are not made unit rows. */
const SHORTEST = 1e-12;

/** The mean of the rows [M, W] that are assigned to each kept token: [K, W]. */
function meanRows(rows: Float32Array, width: number, assignment: Int32Array, counts: Int32Array): Float32Array {
  const sums = new Float64Array(counts.length * width);
  for (const [token, k] of assignment.entries())
    if (k >= 0) for (let c = 0; c < width; c++) sums[k * width + c] += rows[token * width + c];
  return Float32Array.from(sums, (sum, i) => sum / counts[Math.floor(i / width)]);
}

/** The default of Qwen2-VL's config. */
const MERGE = 2;

async function configOf({ config, model }: QwenVisionOptions & { model: string }): Promise<ModelConfig> {
  return config ?? (await readConfig(model));
}

/** Options for a CLIP tower, which this is none. */
function withoutClip<T extends object>(given: T & { clip?: unknown; encoding?: unknown }): T {
  if (typeof given !== 'object' || given === null) return given;
  const { clip, encoding, ...rest } = given;
  if (clip !== undefined)
    throw invalid('ERR_VALUE', 'clip', clip, 'none: the vision encoder of this model is no CLIP tower');
  if (encoding !== undefined && encoding !== 'qq')
    throw invalid('ERR_VALUE', 'encoding', encoding, 'qq, the only one for this model');
  return rest as unknown as T;
}

function requireFullAttention({ vision_config: { depth, fullatt_block_indexes: full } = {} }: ModelConfig): void {
  if (!full || !depth || full.includes(depth - 1)) return;
  throw new DesapError(
    'ERR_GRAPH',
    `config.vision_config.fullatt_block_indexes: got ${full.join(', ')}, wanted the last block, ${depth - 1}, among them: its attention is to see the whole image`,
  );
}
