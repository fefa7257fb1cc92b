import { invalid, mismatch } from '../errors.js';
import { options as checked, entries, fields, type OptionNames } from '../options.js';
import { boolean, integer, isArray, isTensor, object, type TensorLike } from '../tensor.js';
import type { EmbedsDtype } from './elements.js';
import { type GridThw, gridOf, gridOfRows } from './grid.js';
import { layersOf, type Rows, rowsOf, sideBySide } from './rows.js';
import { DEEPSTACK, hasGrid, type ServedModel, servedByRows } from './served-models.js';
import { type EmbedsFormat, fileForm, tensorFile } from './tensor-file.js';

/** How rows are sent. */
export interface EmbedsOptions {
  /** `model_type` in the `config.json` of the model that the server runs. */
  modelType: ServedModel;
  /** D, the width of its language model: `text_config.hidden_size`. */
  hiddenSize: number;
  /** Element type of the file; default `bf16`. The server converts it to its model's own. */
  dtype?: EmbedsDtype;
}

/** Options of {@link toImageEmbeds}. */
export interface ImageEmbedsOptions extends EmbedsOptions {
  /** `torch` (default) is what `torch.save` writes, `npy` what `numpy.save` writes, which has no bf16. */
  format?: EmbedsFormat;
  /** How many rows each image of this server has, K. Any other count is refused: different K at one time end vLLM. */
  rows?: number;
  /** Let the images of one message have different K: for a server that was mended (docs/serving.md). Default false. */
  allowMixedK?: boolean;
}

/** Rows of an image of Qwen2-VL, Qwen2.5-VL or Qwen3-VL, which are placed by a grid. */
export interface GridRows {
  /** [K, D] or [1, K, D], float32 or float16. */
  features: TensorLike;
  /** The image's `image_grid_thw`, in patches. */
  grid: GridThw;
  /** Which of the image's tokens the rows are: needed where they are not all. They have to fill a rectangle. */
  indices?: Int32Array;
  /** Qwen3-VL, which needs them: the rows of its deepstack layers, [layers, K, D]. */
  deepstack?: TensorLike;
}

/** The content part of a chat request that stands for an image. */
export interface ImageEmbedsPart {
  readonly type: 'image_embeds';
  /** A tensor file in base64; of a model with grids beside the grid. */
  readonly image_embeds: string | { readonly image_embeds: string; readonly image_grid_thw: GridThw };
}

const NAMES: OptionNames<ImageEmbedsOptions> = {
  ...{ modelType: true, hiddenSize: true, dtype: true, format: true, rows: true, allowMixedK: true },
};

/**
 * The visual tokens of an image as the content part of a request to vLLM's `/v1/chat/completions`: `features` of a pruned image, or all of
 * them. The server needs `--enable-mm-embeds`.
 *
 * What would end a server, or spoil the answers of others, is refused before anything is written: values that are not finite, also after
 * the conversion to `dtype`; no row; another width; integers; rows that do not fit their grid; images of one message with different K.
 * Requests with different K at one time end vLLM 0.32.0 too: keep one count on a server, and name it in `rows`.
 *
 * @param features [K, D] or [1, K, D], float32 or float16, or {@link GridRows} for a Qwen-VL; a list, for the images of one message, gives
 *   a list
 * @throws DesapError `ERR_VALUE` for an option, for a model that takes no rows and for bf16 in `npy`; `ERR_DTYPE`, `ERR_SHAPE`,
 *   `ERR_NOT_FINITE` for features
 */
export function toImageEmbeds(features: TensorLike | GridRows, options: ImageEmbedsOptions): ImageEmbedsPart;
export function toImageEmbeds(
  features: readonly (TensorLike | GridRows)[],
  options: ImageEmbedsOptions,
): ImageEmbedsPart[];
export function toImageEmbeds(
  features: TensorLike | GridRows | readonly (TensorLike | GridRows)[],
  options: ImageEmbedsOptions,
): ImageEmbedsPart | ImageEmbedsPart[] {
  const { modelType, hiddenSize, dtype, format, rows, allowMixedK = false } = checked('options', options, NAMES);
  servedByRows(modelType);
  integer('hiddenSize', hiddenSize, 1, 2 ** 20);
  const form = fileForm(dtype, format);
  if (rows !== undefined) integer('rows', rows, 1, 2 ** 31 - 1);
  boolean('allowMixedK', allowMixedK);

  const listed = isArray(features) ? entries('features', features as readonly (TensorLike | GridRows)[]) : null;
  const read = hasGrid(modelType) ? gridImage : plainImage;
  const images = (listed ?? [features as TensorLike | GridRows]).map((image, i) =>
    read(listed ? `features[${i}]` : 'features', image, hiddenSize, modelType),
  );
  if (images.length === 0) throw mismatch('ERR_SHAPE', 'features', 'no images', 'at least one');
  const counts = images.map((image) => image.rows.count);
  const other = rows === undefined ? undefined : images.find((image) => image.rows.count !== rows);
  if (other) throw mismatch('ERR_SHAPE', other.argument, `${other.rows.count} rows`, `${rows}, this server's count`);
  if (!allowMixedK && counts.some((count) => count !== counts[0]))
    throw mismatch(
      'ERR_SHAPE',
      'features',
      `images of ${counts.join(', ')} rows`,
      'as many rows of each: vLLM ends on different counts (allowMixedK for a server that does not)',
    );
  const parts = images.map(({ argument, rows, grid }): ImageEmbedsPart => {
    const file = tensorFile(argument, rows, form);
    return { type: 'image_embeds', image_embeds: grid ? { image_embeds: file, image_grid_thw: grid } : file };
  });
  return listed ? parts : parts[0];
}

/** One image, checked. */
interface Image {
  readonly argument: string;
  readonly rows: Rows;
  readonly grid?: GridThw;
}

function plainImage(argument: string, image: TensorLike | GridRows, width: number): Image {
  if (!isTensor(image)) throw invalid('ERR_DTYPE', argument, image, `a tensor [K, ${width}]`);
  return { argument, rows: rowsOf(argument, image, width) };
}

function gridImage(argument: string, image: TensorLike | GridRows, width: number, modelType: ServedModel): Image {
  const wanted = `{ features, grid }: ${modelType} places rows by their grid`;
  if (isTensor(image)) throw mismatch('ERR_VALUE', argument, 'a tensor without a grid', wanted);
  const given = fields(argument, object(argument, image, wanted), ['features', 'grid', 'indices', 'deepstack']);
  const rows = rowsOf(`${argument}.features`, given.features, width);
  const grid = gridOfRows(argument, rows.count, gridOf(`${argument}.grid`, given.grid), given.indices);
  return { argument, rows: withDeepstack(argument, rows, given.deepstack, modelType), grid };
}

/** Rows as wide as the server wants them; on others it ends. */
function withDeepstack(argument: string, rows: Rows, deepstack: TensorLike | undefined, modelType: ServedModel): Rows {
  const name = `${argument}.deepstack`;
  if (modelType !== DEEPSTACK) {
    if (deepstack === undefined) return rows;
    throw invalid('ERR_VALUE', name, deepstack, `nothing: ${modelType} has no deepstack layers`);
  }
  const { count, width } = rows;
  if (deepstack === undefined)
    throw invalid('ERR_VALUE', name, deepstack, `[layers, ${count}, ${width}], the rows of its deepstack layers`);
  return sideBySide(name, [rows, ...layersOf(name, deepstack, count, width)]);
}
