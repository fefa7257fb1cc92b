import type { Tensor } from 'onnxruntime-common';
import type { Abortable } from '../abort.js';
import type { PruneOptions, PruneResult, TensorLike, TextEmbeddings } from '../index.js';
import type { MethodName } from '../methods/index.js';
import type { Layout } from '../methods/rival.js';
import type { LookRule } from './tile-options.js';

/**
 * A vision-language model's view of images, with pruning: each family of models implements it. Pipelines over plain
 * onnxruntime and `attach` work with this alone, and know no family.
 */
export interface VisionModel extends AsyncDisposable {
  /** Which implementation it is: `llava`, `llava_next`, `video_llava`, `phi3_v`, `idefics3`, `lfm2`, `flat`, `qwen`. */
  readonly family: string;
  /** Where the kernels run: `cpu`, `cuda:0`, `reference`; and in words. */
  readonly device: string;
  readonly deviceDescription: string;
  /** How far features may lie from those of the whole file, relative to the largest magnitude: what its arithmetic rounds. */
  readonly tolerance: number;
  /** Outputs of the encoder's file besides the features, rows of each visual token such as deepstack features; undefined where there are none. */
  readonly further?: readonly string[];
  /** How a prompt shows which image tokens are one image's; undefined where they stand in one piece. */
  readonly marks?: ImageMarks;
  /** Whether questions are encoded in another thread, beside the encoder: ask before an image is encoded. Left out: no. */
  readonly questionsBeside?: boolean;
  /** Whether it was opened with `tiles`: a question then chooses what is encoded, too. */
  readonly looks?: boolean;
  /**
   * Encodes the images of one call, in their order, by as few runs of the encoder as it takes. An image is analysed when its first
   * question comes; what a question may yet ask for can be left to {@link EncodedImage.prune}: a family with tiles may look at the
   * whole image here, and closer there.
   *
   * @param names what the caller knows the inputs by, for messages
   * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_OUT_OF_MEMORY`, `ERR_DISPOSED`; `ERR_GRAPH` when the encoder fails for
   *   another reason; all images or none
   */
  encode(inputs: VisionInputs, names?: InputNames, call?: Abortable): Promise<EncodedImage[]>;
  /**
   * A question as rows that the task scores are computed from, for many images.
   * @throws DesapError `ERR_VALUE` for an empty question, or where there is nothing to encode it with; `ERR_DISPOSED`
   */
  encodeQuestion(question: string, call?: Abortable): Promise<TextEmbeddings>;
  /**
   * Encodes one image and prunes it for one question. For several questions, {@link VisionModel.encode} it once.
   * @throws DesapError as {@link VisionModel.encode} and {@link EncodedImage.prune}; `ERR_SHAPE` for several images
   */
  prune(inputs: VisionInputs, question: Question, options?: VisionPruneOptions & Abortable): Promise<PrunedFeatures>;
  /**
   * Prunes several encoded images of this model in one go, each for its question: the images of a prompt, or of a batch. Each result is
   * what {@link EncodedImage.prune} gives for that image alone, to the bit.
   *
   * @param questions one for each image
   * @param options those of each image; default: what the model was opened with
   * @throws DesapError as {@link EncodedImage.prune}, with the image; `ERR_SHAPE` for lists of different lengths; `ERR_VALUE` for an image
   *   that this model did not encode; one bad image fails the call
   */
  pruneImages(
    images: readonly EncodedImage[],
    questions: readonly Question[],
    options?: readonly (VisionPruneOptions | undefined)[],
    call?: Abortable,
  ): Promise<PrunedFeatures[]>;
  /**
   * The maps that {@link VisionModel.pruneImages} chooses by, [P] of each image, with zeros for markers. Nothing is merged, the connector
   * does not run, and it does not matter how many tokens the options keep.
   * @throws DesapError as {@link VisionModel.pruneImages}
   */
  mapImages(
    images: readonly EncodedImage[],
    questions: readonly Question[],
    options?: readonly (VisionPruneOptions | undefined)[],
    call?: Abortable,
  ): Promise<TokenMaps[]>;
  /** Frees everything, after the calls under way. Safe to call again. */
  dispose(): Promise<void>;
}

/** How much each token has of the question (null without one), and how much it stands out. */
export type TokenMaps = NonNullable<PruneResult['maps']>;

/** What an image processor makes of the images of one call. A family takes those that its encoder takes. */
export interface VisionInputs {
  /**
   * LLaVA and other families without tiles: [images, 3, H, W]; Idefics3 and LLaVA-NeXT: [images, tiles, 3, H, W]; LFM2-VL: [tiles, patches,
   * C]; Qwen-VL: [patches of all images, C]. float32 or float16. May be left out where there are videos.
   */
  readonly pixelValues?: TensorLike;
  /** Qwen-VL: frames, rows and columns of patches of each image, [images, 3] int64. */
  readonly imageGridThw?: TensorLike;
  /** Idefics3: [images, tiles, H, W] bool, false throughout for tiles of padding; LFM2-VL: [tiles, patches] int64. */
  readonly pixelAttentionMask?: TensorLike;
  /** LFM2-VL: rows and columns of patches of each tile, [tiles, 2] int64. */
  readonly spatialShapes?: TensorLike;
  /** LLaVA-NeXT: height and width of each image before it was cut into tiles, [images, 2] int64. */
  readonly imageSizes?: TensorLike;
  /** Videos, as `pixelValues` has images. Qwen-VL: [patches of all videos, C]; Video-LLaVA: [videos, frames, 3, H, W]. */
  readonly pixelValuesVideos?: TensorLike;
  /** Qwen-VL: as `imageGridThw`, of the videos. */
  readonly videoGridThw?: TensorLike;
  /** How many tiles each image has, where the other inputs do not say it: Idefics3 and LFM2-VL with several images. */
  readonly tileCounts?: readonly number[];
  /**
   * With the option `tiles`: rows and columns of tiles that each image was cut into, for Idefics3 and LFM2-VL, whose other inputs do not say
   * it. Needed where the number of tiles can be cut in several ways.
   */
  readonly tileGrids?: readonly (readonly [rows: number, columns: number])[];
}

/**
 * The texts of tokens that show where an image of a prompt ends, where its image tokens stand in several pieces with other tokens
 * between: one piece for each tile. An image ends with the first piece that has one of them beside it.
 */
export interface ImageMarks {
  /** Stands in front of the last piece. */
  readonly beforeLast?: string;
  /** Stands behind the last piece. */
  readonly afterLast?: string;
  /** What stands in front of a tile's piece and goes with it begins with this token. */
  readonly tileBegin?: string;
  /** The token beside the piece of the tile in a row and a column, from 1, with `{row}` and `{column}` for the numbers. */
  readonly tileName?: string;
}

/** What a caller knows the inputs by. */
export type InputNames = { readonly [Input in keyof Required<VisionInputs>]: string };

/** The names that {@link VisionInputs} has for them. */
export const INPUT_NAMES: InputNames = {
  pixelValues: 'pixelValues',
  imageGridThw: 'imageGridThw',
  pixelAttentionMask: 'pixelAttentionMask',
  spatialShapes: 'spatialShapes',
  imageSizes: 'imageSizes',
  pixelValuesVideos: 'pixelValuesVideos',
  videoGridThw: 'videoGridThw',
  tileCounts: 'tileCounts',
  tileGrids: 'tileGrids',
};

/** A text, or its embeddings; null with `taskShare: 0`, which needs none. */
export type Question = string | TextEmbeddings | null;

/** One encoded image, for many questions. */
export interface EncodedImage extends Disposable {
  /** Images come first among those of a call, then videos. */
  readonly medium: 'image' | 'video';
  /**
   * P: the visual tokens that the prompt has for it. Each is one unit (a patch, or the patches that the connector joins), or a marker
   * that no patch goes into: a newline vector, a class row.
   */
  readonly tokenCount: number;
  /** Where they stand: the tokens of one tile after the other, row by row. An image without tiles is one tile. */
  readonly tiles: readonly Tile[];
  /** Bytes that it holds: hidden states and rows, its analyses counted as if they were made; its share of what a run's images have together. */
  readonly byteLength: number;
  /** The fewest units that `allocation: 'image'` keeps: one of each tile, or one of a video whose frames are pruned as one. */
  readonly least: number;
  /**
   * Keeps K visual tokens for a question, as rows of the language model's width.
   *
   * @throws DesapError `ERR_VALUE` for the question and the options; those of `ImageAnalysis.prune`; `ERR_NOT_FINITE` for an image whose
   *   encoding is not finite
   */
  prune(question: Question, options?: VisionPruneOptions & Abortable): Promise<PrunedFeatures>;
  /** All visual tokens, [1, P, W], as the model's own file encodes them: nothing is pruned. */
  all(call?: Abortable): Promise<Tensor>;
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

/**
 * What `keep` and `keepRatio` are of: of each tile (or frame), or of the whole image (or video), whose tokens are then shared over its
 * tiles by what the question finds in them.
 */
export type Allocation = 'tile' | 'image';

/**
 * A named set of options. `paper`: the form that is printed, `{ alignment: 'fcma', taskShare: 0.5, complement: 'saliency' }`. `best`: what
 * kept more answers right on the example models, `{ alignment: 'mean', taskShare: 0.5, complement: 'diversity' }`; docs/accuracy.md says
 * what that can show.
 */
export type Preset = 'paper' | 'best';

/**
 * Whose distances count for the diversity: those between the hidden states that are merged, or between all tokens behind the connector,
 * which then has to run on all of them, once an image.
 */
export type Distances = 'hidden' | 'projected';

/** How to prune; see `PruneOptions`. Without `keep` and `keepRatio`, those hold that the model was opened with. */
export interface VisionPruneOptions extends Omit<PruneOptions, 'task' | 'features' | 'matrices' | 'distances'> {
  /** What is given beside it wins. */
  preset?: Preset;
  /** With `complement: 'diversity'`. Default: those of the rows that are merged; families that merge projected rows have no others. */
  distances?: Distances;
  /**
   * What chooses the tokens: `desap` (default), the pruner itself, or a method that it is compared with, of which `keep`, `keepRatio` and
   * `allocation` are asked and none of the other options here; see docs/methods.md.
   */
  method?: MethodName;
  /** Options of that method, by its own names. */
  methodOptions?: object;
  /**
   * The order of the tokens: `raster` (default), or that in which the method's published code feeds them on, `public`. Markers stay where
   * they are. Tokens then have no places of their own: `positions` is `compact`.
   */
  layout?: Layout;
  /** Default: what the family's page says; it makes no difference for an image of one tile. */
  allocation?: Allocation;
}

/**
 * By which form text and image were matched. `clip`: the read-out of the CLIP that the encoder belongs to, the paper's own; `siglip`: SigLIP's
 * value path; `llm`: the language model's embedding space. No accuracy is claimed for the last two.
 */
export type TaskForm = 'clip' | 'siglip' | 'llm';

/**
 * Milliseconds. `waiting`: for the device, behind other calls, or for a worker of a pool: no work, and in no other number. Then the work: the
 * encoder; what the image costs the pruner (of other methods, what they compute of the tower's blocks); encoding the
 * question; pruning; the connector, with the features of all patches where they are read. Of images that were encoded in one run, or
 * pruned in one call, each has its share. What is made once an image counts for each of its questions.
 */
export interface VisionTimings {
  readonly waiting: number;
  readonly vision: number;
  readonly analyze: number;
  readonly text: number;
  readonly prune: number;
  readonly projector: number;
  /** The stages of `prune` and `analyze`; of other methods `select` and `merge` alone, which make up `prune`. */
  readonly stages: PruneResult['timings'];
}

/** Which tiles of an image were encoded, and why. Tiles are counted row by row, without the whole view. */
export interface Looked {
  /** What told them. */
  readonly by: LookRule;
  /** Those that were taken, ascending. Tokens of all others are in no result, and their markers in no prompt. */
  readonly taken: Int32Array;
  /** [tiles] how much each has of the question, by the rule's own measure. */
  readonly scores: Float32Array;
}

/**
 * What the language model gets of one image for one question. K kept tokens, W its width. `choice` is of all tiles, one after the other, in
 * the image's tokens.
 */
export interface PrunedFeatures extends Omit<PruneResult, 'tokens' | 'matrices' | 'timings'> {
  /** [1, K, W], float32, for the image tokens of the prompt; K counts markers that stay. */
  readonly features: Tensor;
  /**
   * What the file hands out of each visual token besides its features, such as deepstack features: gathered and averaged like these,
   * [K, W], or [layers, K, W], by output; left out where there is nothing.
   */
  readonly further?: Readonly<Record<string, Tensor>>;
  /** How many units of each tile were kept. */
  readonly tileCounts: Int32Array;
  /**
   * Places of the units that were dropped inside the tower (option `tower`), ascending; left out where none was. None of them is kept. In
   * `assignment` each has the kept token that is nearest by its state at the cut, where the others are merged; no token's rows and `counts`
   * have a part of it, and maps are zero there.
   */
  readonly dropped?: Int32Array;
  /** Which tiles were encoded for the question (option `tiles`); left out where there was nothing to choose. */
  readonly looked?: Looked;
  /** How the question had a part in it; null with `taskShare: 0`. */
  readonly task: { readonly form: TaskForm } | null;
  readonly timings: VisionTimings;
}
