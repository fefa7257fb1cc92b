import type { InferenceSession, Tensor } from 'onnxruntime-common';
import type { Grid } from '../methods/method.js';
import type { OrtModule } from '../onnx/edit.js';
import type { ModelConfig } from './model-folder.js';
import type { ImageMarks, InputNames, Tile, VisionInputs } from './vision-model.js';

/**
 * What a family of vision encoders with a last block of its own has to say: how the inputs of a call are fed, and which rows of the
 * encoder are which tile of which image. `BlockVision` does everything else, the same for all.
 */
export interface BlockFamily {
  /** `VisionModel.family`. */
  readonly name: string;
  /**
   * The runs of the encoder that the inputs of one call take.
   *
   * @param names what the caller knows the inputs by
   * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, with the input's name
   */
  read(
    inputs: VisionInputs,
    names: InputNames,
    encoder: EncoderFacts,
  ): readonly EncoderRun[] | Promise<readonly EncoderRun[]>;
  /**
   * The same tile by tile, for images of a whole view and tiles of which some can be left out. Left out by families without such tiles.
   * @throws DesapError as `read`
   */
  tiled?(inputs: VisionInputs, names: InputNames, encoder: EncoderFacts): readonly TiledInput[];
  /**
   * Left out where there is nothing to check.
   * @throws DesapError `ERR_GRAPH` for an encoder that cannot be pruned, as its config says
   */
  check?(config: ModelConfig): void;
  /** Inputs on which the file and what was read of it are compared. */
  trials(session: InferenceSession, config: ModelConfig): VisionInputs[];
  /** `VisionModel.marks`; left out where the tokens of an image stand in one piece. */
  readonly marks?: ImageMarks;
  /** What else is wanted of a file whose features differ, behind a comma; empty where that is nothing. */
  readonly premise: string;
}

/** What is known of an encoder before it runs. */
export interface EncoderFacts {
  readonly config: ModelConfig;
  /** The file's inputs by name, with their TensorProto.DataType, and their extents as far as the file says them. */
  readonly inputs: readonly {
    readonly name: string;
    readonly type: number;
    readonly dims: readonly (number | string)[] | null;
  }[];
  /**
   * Whether one run computes of several images what it computes of each alone, by trial: some exports have the batch of their trial image
   * in shapes, or let patches see those of all images. Asked once of an encoder.
   *
   * @param both a run of two images of one size
   * @param alone a run of the second of them
   */
  several(both: EncoderRun, alone: EncoderRun): Promise<boolean>;
  /** Rows of hidden states that make one run, where one tile does not have more. */
  readonly rowsAtOnce: number;
}

/** A tensor to feed: what `new ort.Tensor(type, data, dims)` takes. */
export interface Feed {
  readonly type: 'float32' | 'int64' | 'bool';
  readonly data: Float32Array | BigInt64Array | Uint8Array;
  readonly dims: readonly number[];
}

/** What a run is fed, by input. */
export type Feeds = Readonly<Record<string, Feed>>;

/** What a session is fed: a graph may have no use for an input of the file. */
export function tensorsOf(ort: OrtModule, feeds: Feeds, inputs: readonly string[]): Record<string, Tensor> {
  const tensor = ({ type, data, dims }: Feed) => new ort.Tensor(type as 'float32', data as Float32Array, dims);
  const fed = Object.entries(feeds).filter(([name]) => inputs.includes(name));
  return Object.fromEntries(fed.map(([name, feed]) => [name, tensor(feed)]));
}

/** One run of the encoder. The extents of what it is fed settle those of the hidden states. */
export interface EncoderRun {
  readonly feeds: Feeds;
  /**
   * The same tiles by fewer at a time: their hidden states follow each other. A tower takes these where it hands out nothing else. Left
   * out: it does not pay.
   */
  readonly parts?: readonly Feeds[];
  /**
   * The sequences of the hidden states, one for each tile.
   * @param hidden dims of the hidden states: [B, N, D], or [N, D]; their rows are counted through
   */
  sequences(hidden: readonly number[]): readonly Sequence[];
  /**
   * The tiles of the run, in the order of their rows, once it is known what came out.
   * @param hidden dims of the hidden states: [B, N, D], or [N, D]; their rows are counted through
   * @param features dims of the features: [.., M, W]; their rows are counted through
   */
  tiles(hidden: readonly number[], features: readonly number[]): readonly TileRows[];
}

/** One image of a call, in tiles: the last is the whole view. Its memory is its own. */
export interface TiledInput {
  readonly tiles: number;
  /**
   * Rows and columns of tiles that the image was cut into.
   * @throws DesapError `ERR_VALUE` where several are possible
   */
  grid(): Grid;
  /** @param some tiles, ascending */
  run(some: readonly number[]): EncoderRun;
  /**
   * Rows and columns of visual tokens of a tile.
   * @param whole those of the whole view
   */
  units(tile: number, whole: Grid): Grid;
}

/** A sequence of the encoder, whose attention stays within. */
export interface Sequence {
  /** Its first row among all rows of the hidden states, and how many patches follow; rows behind are padding. */
  readonly firstRow: number;
  readonly patches: number;
}

/** One tile, which is a sequence. */
export interface TileRows extends Tile, Sequence {
  /** Which image of the call it belongs to. */
  readonly image: number;
  readonly medium: 'image' | 'video';
  /** For each patch its visual token within the tile, before the encoder's order is undone; null: each patch is one. */
  readonly unit: Int32Array | null;
  /** Its first row among all rows of the features, and how many visual tokens follow. */
  readonly firstToken: number;
  readonly tokens: number;
}

/**
 * The visual token of each patch on a grid where squares of side x side patches make one, both row by row.
 * @param rows of patches; a multiple of `side`, as `columns` is
 */
export function unitsOfGrid(rows: number, columns: number, side: number): Int32Array {
  const across = columns / side;
  return Int32Array.from({ length: rows * columns }, (_, patch) => {
    const [row, column] = [Math.floor(patch / columns), patch % columns];
    return Math.floor(row / side) * across + Math.floor(column / side);
  });
}
