import type { InferenceSession } from 'onnxruntime-common';
import { ASYNC_DISPOSE, DISPOSE } from '../dispose-symbols.js';
import { DesapError, invalid, mismatch } from '../errors.js';
import { isFile, requireFolder } from '../files.js';
import {
  type AnalyzeOptions,
  type DeviceOptions,
  type HeadWeights,
  type ImageAnalysis,
  type PruneOptions,
  type PruneResult,
  Pruner,
  type TensorLike,
  type TextEmbeddings,
} from '../index.js';
import { Lifetime } from '../lifetime.js';
import { confirmProjector } from '../onnx/head/confirm-rows.js';
import {
  type EditedGraph,
  HIDDEN_STATES,
  IMAGE_FEATURES,
  type OrtModule,
  openGraph,
  PATCHES,
  projectorGraph,
  readTower,
  towerGraph,
} from '../onnx/index.js';
import { loadOrt } from '../ort.js';
import { floatData, matrix, object, Tensor, widened } from '../tensor.js';
import { checkQuestion } from './check-question.js';
import { clipFile } from './clip-folder.js';
import { ClipText, type LongText } from './clip-text.js';
import { type HiddenMemory, hiddenMemory } from './hidden-memory.js';
import { allOrNone, atRest, runSession } from './session.js';
import { requireFit, towerHead } from './tower-head.js';

const TOWER = { argument: 'pixelValues', graph: 'the vision tower' };
const PROJECTOR = { argument: 'tokens', graph: 'the projector' };

export interface PrunedVisionOptions extends DeviceOptions, Pick<AnalyzeOptions, 'encoding'> {
  /**
   * CLIP folder of the same vision tower: `onnx/text_model.onnx`, `tokenizer.json`, and `onnx/vision_model.onnx` for the head; or
   * both towers in one `model.onnx`, as Optimum exports them.
   * Only with a `pruner` may it be left out: questions are then given as tokens that are encoded already.
   */
  clip?: string;
  /** A head (weights, or the path of a head file made by `desap extract`) in place of the CLIP folder's `vision_model.onnx`. */
  head?: string | HeadWeights;
  /** A pruner that is open already, in place of a head; it stays the caller's and can only be checked by its shape. */
  pruner?: Pruner;
  /** Default of the option `keep` of every call. */
  keep?: number;
  /** What happens to questions longer than the text tower's context; default `segment`. */
  longText?: LongText;
  /** Session options of ONNX Runtime, for every session; default: its own, with threads that do not spin between runs. */
  session?: InferenceSession.SessionOptions;
  /** The onnxruntime-node module; default: the installed one. */
  ort?: OrtModule;
}

/** How to prune; see `PruneOptions`. The matrices of eq. 3 are not carried through. */
export interface VisionPruneOptions extends Omit<PruneOptions, 'keep' | 'features' | 'matrices'> {
  /** Visual tokens to keep, a count or a fraction below 1; default: the option `keep` of {@link PrunedVision.open}. */
  keep?: number;
}

/** Milliseconds: the tower; what the image costs the pruner; the question's text tower; pruning; the projector. */
export interface VisionTimings {
  readonly vision: number;
  readonly analyze: number;
  readonly text: number;
  readonly prune: number;
  readonly projector: number;
  /** The pruner's own stages. */
  readonly stages: PruneResult['timings'];
}

/** What the language model gets of one image for one question. K kept tokens, W its width. */
export interface PrunedFeatures extends Omit<PruneResult, 'tokens' | 'matrices' | 'timings'> {
  /** Projected features [1, K, W], for the image tokens of the prompt. */
  readonly features: Tensor;
  readonly timings: VisionTimings;
}

/**
 * LLaVA's vision encoder with pruning between its tower and its projector, over onnxruntime-node.
 *
 * The user's `vision_encoder.onnx` is opened in two parts that share its weights on disk. The tower writes its hidden states
 * straight into memory that the pruner reads in place; the kept tokens are the projector's input as they are.
 *
 * ONNX Runtime blocks Node's event loop while a session runs (version 1.30 runs on the main thread); the pruner does not.
 * A server puts the whole pipeline into a worker thread.
 *
 * ```ts
 * const vision = await PrunedVision.open('llava/onnx/vision_encoder.onnx', { clip: 'clip-vit-large-patch14-336' });
 * const { features, indices } = await vision.encode(pixelValues, 'is the fence wood or metal?', { keep: 64 });
 * ```
 */
export class PrunedVision {
  /** Shape of the hidden states for each shape of `pixel_values` seen so far. */
  readonly #shapes = new Map<string, readonly number[]>();
  /** @internal Its analyses use it too. */
  readonly life = new Lifetime('PrunedVision');

  private constructor(
    /** The pruner, for single kernels and other text than a question. */
    readonly pruner: Pruner,
    private readonly ownsPruner: boolean,
    private readonly clipText: ClipText | null,
    private readonly ort: OrtModule,
    private readonly tower: InferenceSession,
    private readonly projector: InferenceSession,
    /** Whether the file itself leaves the class token out of its features, or has none. */
    readonly dropsClassToken: boolean,
    private readonly encoding: AnalyzeOptions['encoding'],
    /** Default of the option `keep`. */
    readonly keep: number | undefined,
  ) {}

  /**
   * Opens the encoder in two parts, takes the head out of the CLIP folder, and checks by numbers that both belong to one tower.
   *
   * @param visionEncoder path of a LLaVA `vision_encoder.onnx`
   * @throws DesapError `ERR_FILE`; `ERR_GRAPH` when a file holds another kind of model; `ERR_HEAD_MISMATCH` when head and tower
   *   do not belong together; `ERR_DEVICE_UNAVAILABLE`; `ERR_MISSING_PACKAGE`
   */
  static async open(visionEncoder: string, given: PrunedVisionOptions): Promise<PrunedVision> {
    const options = { ...given, session: atRest(object('options', given).session) };
    const { clip, pruner } = options;
    const ort = options.ort ?? (await loadOrt());
    if (clip !== undefined) await requireFolder(clip, 'a CLIP folder');
    else if (!pruner) throw invalid('ERR_VALUE', 'clip', clip, 'a CLIP folder (or the option pruner)');
    if (!(await isFile(visionEncoder)))
      throw new DesapError('ERR_FILE', `${visionEncoder}: got no such file, wanted a LLaVA vision encoder`);
    const structure = readTower(visionEncoder);
    if (pruner) requireFit(pruner.head, structure, visionEncoder);
    const tower = towerGraph(structure);
    if (tower.inputs.length !== 1)
      throw new DesapError(
        'ERR_GRAPH',
        `${visionEncoder}: got the inputs ${tower.inputs.join(', ')} of its vision tower, wanted the pixels only`,
      );
    const projector = projectorGraph(structure);
    return allOrNone(async (opened) => {
      const open = async (graph: EditedGraph) =>
        opened(await openGraph(ort, graph, options.session), (part) => part.release());
      const [session, projectorSession] = [await open(tower), await open(projector)];
      await confirmProjector(ort, { structure, session: projectorSession }, options.session);
      const head = pruner
        ? null
        : await towerHead(ort, visionEncoder, { structure, session }, { ...options, clip: clip as string });
      return new PrunedVision(
        head ? opened(await Pruner.load(head, options), (loaded) => loaded.dispose()) : (pruner as Pruner),
        head !== null,
        clip === undefined ? null : opened(await openText({ ...options, clip, ort }), (text) => text.dispose()),
        ort,
        session,
        projectorSession,
        !structure.classToken || structure.projector?.dropsClassToken === true,
        options.encoding,
        options.keep,
      );
    });
  }

  /**
   * The CLIP text tower.
   * @throws DesapError `ERR_VALUE` when there is no CLIP folder
   */
  get text(): ClipText {
    if (this.clipText) return this.clipText;
    throw mismatch(
      'ERR_VALUE',
      'question',
      'a text without a CLIP folder',
      'its tokens already encoded, or the option clip',
    );
  }

  /** The pruner's device in words. */
  get device(): string {
    return this.pruner.deviceDescription;
  }

  /**
   * The part of an image that no question changes. Dispose what it returns.
   *
   * @param pixelValues [1, 3, H, W], float32
   * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_NOT_FINITE`, `ERR_OUT_OF_MEMORY`, `ERR_DISPOSED`; `ERR_GRAPH` when the tower fails
   *   for another reason
   */
  async analyze(pixelValues: Tensor): Promise<VisionAnalysis> {
    return this.life.call(() => this.#analyze(pixelValues));
  }

  async #analyze(pixelValues: Tensor): Promise<VisionAnalysis> {
    const start = performance.now();
    const { memory, hidden } = await this.#hidden(pixelValues);
    try {
      const encoded = performance.now();
      const image = await this.pruner.analyze(hidden, { encoding: this.encoding });
      const timings = { vision: encoded - start, analyze: performance.now() - encoded };
      return new VisionAnalysis(this, image, hidden, memory, timings);
    } catch (error) {
      memory.dispose();
      throw error;
    }
  }

  /**
   * Analyses an image and prunes it for one question. For several questions, {@link PrunedVision.analyze} it once.
   * @throws as {@link PrunedVision.analyze} and {@link VisionAnalysis.prune}
   */
  async encode(pixelValues: Tensor, question: string, options?: VisionPruneOptions): Promise<PrunedFeatures> {
    return this.life.call(() => this.#encode(pixelValues, question, options));
  }

  async #encode(pixelValues: Tensor, question: string, options?: VisionPruneOptions): Promise<PrunedFeatures> {
    const analysis = await this.analyze(pixelValues);
    try {
      return await analysis.prune(question, options);
    } finally {
      analysis.dispose();
    }
  }

  /** The projector alone: rows [K, D] to features [1, K, W]. */
  async project(tokens: TensorLike): Promise<Tensor> {
    return this.life.call(() => this.#project(tokens));
  }

  async #project(tokens: TensorLike): Promise<Tensor> {
    const kept = matrix('tokens', tokens, { cols: this.pruner.head.width });
    const input = new Tensor('float32', widened(kept), [1, kept.rows, kept.cols]);
    const outputs = await runSession(this.projector, PROJECTOR, { [PATCHES]: input });
    return outputs[IMAGE_FEATURES];
  }

  /**
   * All rows, as the user's own file encodes them: no analysis, no pruning.
   *
   * @param pixelValues [1, 3, H, W], float32
   * @returns features [1, P, W]; [1, P + 1, W], the class token's first, of a file that has it among its features
   * @throws as {@link PrunedVision.analyze}
   */
  async encodeAll(pixelValues: Tensor): Promise<Tensor> {
    return this.life.call(() => this.#encodeAll(pixelValues));
  }

  async #encodeAll(pixelValues: Tensor): Promise<Tensor> {
    const { memory, hidden } = await this.#hidden(pixelValues);
    try {
      const width = hidden.dims[2];
      const rows = hidden.dims[1] - Number(this.pruner.head.classToken && this.dropsClassToken);
      const data = (hidden.data as Float32Array).subarray(-rows * width);
      return await this.project({ data, dims: [rows, width] });
    } finally {
      memory.dispose();
    }
  }

  /** Hidden states [1, N, D] in memory that the pruner reads in place. */
  async #hidden(pixelValues: Tensor): Promise<{ memory: HiddenMemory; hidden: Tensor }> {
    const pixels = floatData('pixelValues', pixelValues);
    const extents = pixels.dims;
    if (extents.length !== 4 || extents[0] !== 1)
      throw invalid('ERR_SHAPE', 'pixelValues.dims', extents, '[1, 3, H, W]');
    const feeds = { [this.tower.inputNames[0]]: new this.ort.Tensor('float32', widened(pixels), extents) };
    const key = extents.join();
    const known = this.#shapes.get(key);
    const output = known ? null : (await runSession(this.tower, TOWER, feeds))[HIDDEN_STATES];
    const dims = known ?? (output as Tensor).dims;
    this.#shapes.set(key, dims);
    const memory = hiddenMemory(dims, this.pruner.device);
    try {
      // ONNX Runtime writes into a given output only when its own Tensor class holds it.
      const hidden = new this.ort.Tensor('float32', memory.data, dims);
      if (output) memory.data.set(output.data as Float32Array);
      else await runSession(this.tower, TOWER, feeds, { [HIDDEN_STATES]: hidden });
      return { memory, hidden };
    } catch (error) {
      memory.dispose();
      throw error;
    }
  }

  /** Frees the sessions and the pruner, after the calls under way; analyses only tell what they hold from then on. Safe to call again. */
  dispose(): Promise<void> {
    return this.life.end(async () => {
      if (this.ownsPruner) this.pruner.dispose();
      await Promise.all([this.clipText?.dispose(), this.tower.release(), this.projector.release()]);
    });
  }

  async [ASYNC_DISPOSE](): Promise<void> {
    await this.dispose();
  }
}

/** One image for many questions; made by {@link PrunedVision.analyze}. */
export class VisionAnalysis implements Disposable {
  readonly #life = new Lifetime('VisionAnalysis');

  /** @internal */
  constructor(
    private readonly vision: PrunedVision,
    /** The pruner's analysis: saliency, embedding. */
    readonly image: ImageAnalysis,
    /** Hidden states before the encoder's last layer, [1, N, D]; valid until `dispose`. */
    readonly hidden: Tensor,
    private readonly memory: HiddenMemory,
    private readonly timings: Pick<VisionTimings, 'vision' | 'analyze'>,
  ) {}

  /** P, patches. */
  get patches(): number {
    return this.image.patches;
  }

  /**
   * The patch rows of {@link VisionAnalysis.hidden}, [P, D]; the same memory.
   * @throws DesapError `ERR_DISPOSED`
   */
  get patchStates(): TensorLike {
    this.#life.check();
    const width = this.hidden.dims[2];
    const data = this.hidden.data as Float32Array;
    return { data: data.subarray(data.length - this.patches * width), dims: [this.patches, width] };
  }

  /**
   * Prunes for a question: its text tower, the pruner, the projector.
   *
   * @param question as the CLIP text tower is to see it, or its tokens already encoded
   * @throws DesapError `ERR_VALUE` for an empty question, `keep`, ...; the errors of `ImageAnalysis.prune`; `ERR_DISPOSED` when this
   *   or its `PrunedVision` was disposed
   */
  async prune(question: string | TextEmbeddings, options: VisionPruneOptions = {}): Promise<PrunedFeatures> {
    return this.#life.call(() => this.vision.life.call(() => this.#prune(question, options)));
  }

  async #prune(question: string | TextEmbeddings, options: VisionPruneOptions): Promise<PrunedFeatures> {
    object('options', options);
    if (typeof question !== 'string') object('question', question, 'a text, or its tokens already encoded');
    const keep = (options.keep ?? this.vision.keep) as number; // checked with the other options
    const start = performance.now();
    const text = typeof question === 'string' ? await this.vision.text.encode(checkQuestion(question)) : question;
    const encoded = performance.now();
    const { tokens, timings: stages, ...kept } = await this.image.prune(text, { ...options, keep });
    const pruned = performance.now();
    const features = await this.vision.project(tokens);
    const timings: VisionTimings = {
      ...this.timings,
      text: encoded - start,
      prune: pruned - encoded,
      projector: performance.now() - pruned,
      stages,
    };
    return { ...kept, features, timings };
  }

  /** The projector alone: rows [K, D] of any selection to features [1, K, W]. */
  async project(tokens: TensorLike): Promise<Tensor> {
    return this.vision.project(tokens);
  }

  /** Frees the analysis and the hidden states, after the calls under way. Safe to call again. */
  dispose(): void {
    this.#life.end(() => {
      this.image.dispose();
      this.memory.dispose();
    });
  }

  [DISPOSE](): void {
    this.dispose();
  }
}

async function openText(options: PrunedVisionOptions & { clip: string }): Promise<ClipText> {
  const { clip, longText, session, ort } = options;
  return ClipText.open({ model: await clipFile(clip, 'text'), tokenizer: clip, longText, session, ort });
}
