import type { Tensor } from 'onnxruntime-common';
import type { PruneOptions, PruneResult, TensorLike, TextEmbeddings } from '../index.js';

/**
 * A vision-language model's view of images, with pruning: each family of models implements it. Pipelines over plain
 * onnxruntime and `attach` work with this alone, and know no family.
 */
export interface VisionModel extends AsyncDisposable {
  /** Which implementation it is: `llava` or `qwen`. */
  readonly family: string;
  /** Where the kernels run: `cpu`, `cuda:0`, `reference`; and in words. */
  readonly device: string;
  readonly deviceDescription: string;
  /** How far features may lie from those of the whole file, relative to the largest magnitude: what its arithmetic rounds. */
  readonly tolerance: number;
  /**
   * Encodes the images of one call, in their order, by as few runs of the encoder as it takes. An image is analysed when its first
   * question comes; what a question may yet ask for can be left to {@link EncodedImage.prune}: a family with tiles may look at the
   * whole image here, and closer there.
   *
   * @param names what the caller knows the inputs by, for messages
   * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_OUT_OF_MEMORY`, `ERR_DISPOSED`; `ERR_GRAPH` when the encoder fails for
   *   another reason; all images or none
   */
  encode(inputs: VisionInputs, names?: InputNames): Promise<EncodedImage[]>;
  /**
   * A question as rows that the task scores are computed from, for many images.
   * @throws DesapError `ERR_VALUE` for an empty question, or where there is nothing to encode it with; `ERR_DISPOSED`
   */
  encodeQuestion(question: string): Promise<TextEmbeddings>;
  /**
   * Encodes one image and prunes it for one question. For several questions, {@link VisionModel.encode} it once.
   * @throws DesapError as {@link VisionModel.encode} and {@link EncodedImage.prune}; `ERR_SHAPE` for several images
   */
  prune(inputs: VisionInputs, question: Question, options?: VisionPruneOptions): Promise<PrunedFeatures>;
  /** Frees everything, after the calls under way. Safe to call again. */
  dispose(): Promise<void>;
}

/** What an image processor makes of the images of one call. A family takes those that its encoder takes. */
export interface VisionInputs {
  /** LLaVA: [images, 3, H, W]; Qwen-VL: [patches of all images, C]. float32 or float16. */
  readonly pixelValues: TensorLike;
  /** Qwen-VL: frames, rows and columns of patches of each image, [images, 3] int64. */
  readonly imageGridThw?: TensorLike;
}

/** What a caller knows the inputs by. */
export type InputNames = { readonly [Input in keyof Required<VisionInputs>]: string };

/** The names that {@link VisionInputs} has for them. */
export const INPUT_NAMES: InputNames = { pixelValues: 'pixelValues', imageGridThw: 'imageGridThw' };

/** A text, or its embeddings; null with `taskShare: 0`, which needs none. */
export type Question = string | TextEmbeddings | null;

/** One encoded image, for many questions. */
export interface EncodedImage extends Disposable {
  /** P: the visual tokens that the prompt has for it. Each is one unit: a patch, or the patches that the connector joins. */
  readonly tokenCount: number;
  /** Where they stand: the tokens of one tile after the other, row by row. An image without tiles is one tile. */
  readonly tiles: readonly Tile[];
  /**
   * Keeps K visual tokens for a question, as rows of the language model's width.
   *
   * @throws DesapError `ERR_VALUE` for the question and the options; those of `ImageAnalysis.prune`; `ERR_NOT_FINITE` for an image whose
   *   encoding is not finite
   */
  prune(question: Question, options?: VisionPruneOptions): Promise<PrunedFeatures>;
  /** All visual tokens, [1, P, W], as the model's own file encodes them: nothing is pruned. */
  all(): Promise<Tensor>;
  /** Frees what the image holds, after the calls under way. Safe to call again. */
  dispose(): void;
}

/** A rectangle of visual tokens that the encoder sees together: an image, a part of one, or a frame of a video. */
export interface Tile {
  /** Which frame of a video it belongs to; 0 for images. */
  readonly frame: number;
  readonly rows: number;
  readonly columns: number;
}

/** How many visual tokens to keep: one of the two. */
export type Budget = Pick<PruneOptions, 'keep' | 'keepRatio'>;

/** How to prune; see `PruneOptions`. Without `keep` and `keepRatio`, those hold that the model was opened with. */
export type VisionPruneOptions = Omit<PruneOptions, 'features' | 'matrices'>;

/**
 * Milliseconds: the encoder; what the image costs the pruner; encoding the question; pruning; the connector. Of images that were
 * encoded in one run each has its share.
 */
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
  /** [1, K, W], float32, for the image tokens of the prompt. */
  readonly features: Tensor;
  readonly timings: VisionTimings;
}
