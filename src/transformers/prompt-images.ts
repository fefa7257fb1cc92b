/** The images of a prompt: encoded, and with the columns that their tokens stand in. */
import { invalid, mismatch } from '../errors.js';
import type { EncodedImage, ImageMarks, InputNames, VisionInputs, VisionModel } from '../vision/vision-model.js';
import type { FurtherInputs } from './further-inputs.js';
import { type HookedModel, imageTokenId, type ModelInputs, type ModelTensor } from './model.js';
import type { Questions } from './question/question.js';
import { imageSpans, type Span } from './spans.js';
import { type PromptTiles, promptTiles, type TileMarkIds } from './tile-marks.js';
import { imageIds, type VisualIds, videoIds } from './visual-ids.js';

/** The parts of an attached model that a prefill works with. */
export interface Attached {
  readonly model: HookedModel;
  readonly vision: VisionModel;
  readonly questions: () => Promise<Questions>;
  /** Null for a decoder that takes embeddings alone. */
  readonly further: FurtherInputs | null;
}

/** One image of a prompt. */
export interface PromptImage {
  readonly sequence: number;
  readonly encoded: EncodedImage;
  /** Columns of its tokens. */
  readonly columns: readonly number[];
  /** Its tiles, where some may be left out. */
  readonly tiles?: PromptTiles;
}

/** What callers of the model know the vision model's inputs by. Tiles are counted by the image tokens. */
const NAMES: InputNames = {
  pixelValues: 'pixel_values',
  imageGridThw: 'image_grid_thw',
  pixelAttentionMask: 'pixel_attention_mask',
  spatialShapes: 'spatial_shapes',
  imageSizes: 'image_sizes',
  pixelValuesVideos: 'pixel_values_videos',
  videoGridThw: 'video_grid_thw',
  tileCounts: 'input_ids',
  tileGrids: 'input_ids',
};

/**
 * Encodes the images of a prompt. The caller disposes of them.
 * @throws DesapError as `VisionModel.encode`; `ERR_SHAPE` for image tokens that are not those of the images; `ERR_FILE` for a family whose
 *   images are told apart by tokens, without its tokenizer
 */
export async function promptImages(attached: Attached, inputs: ModelInputs): Promise<PromptImage[]> {
  const { model, vision } = attached;
  const ids = inputs.input_ids as ModelTensor;
  const video = videoIds(model);
  if (video !== null && !inputs.pixel_values_videos && (ids.data as BigInt64Array).some((id) => video.has(id)))
    throw invalid('ERR_VALUE', 'pixel_values_videos', inputs.pixel_values_videos, 'the frames of the prompt’s videos');
  const spans = await spansOf(attached, ids);
  const tiles = spans && vision.looks ? await tilesOf(attached, ids, spans) : null;
  const encoded = await vision.encode(visionInputs(model, inputs, spans, tiles), NAMES);
  try {
    const of = (medium: EncodedImage['medium']) => encoded.filter((one) => one.medium === medium);
    const images = spans === null ? inOrder(ids, imageIds(model), of('image')) : bySpans(spans, encoded, tiles);
    return video === null ? images : [...images, ...inOrder(ids, video, of('video'))];
  } catch (error) {
    for (const image of encoded) image.dispose();
    throw error;
  }
}

/** The images by the marks that their family has; null where it has none, or the prompt. */
async function spansOf({ model, vision, questions }: Attached, ids: ModelTensor): Promise<Span[] | null> {
  if (vision.marks === undefined) return null;
  const text = await questions();
  const idOf = (mark: string | undefined) => {
    const id = mark === undefined ? undefined : text.idOf(mark);
    return id === undefined ? undefined : BigInt(id);
  };
  const { beforeLast, afterLast } = vision.marks;
  const marks = { beforeLast: idOf(beforeLast), afterLast: idOf(afterLast) };
  return imageSpans(ids.data as BigInt64Array, ids.dims, imageTokenId(model), marks);
}

function visionInputs(
  { forward_params }: HookedModel,
  inputs: ModelInputs,
  spans: readonly Span[] | null,
  tiles: readonly PromptTiles[] | null,
): VisionInputs {
  return {
    pixelValues: inputs.pixel_values ?? undefined,
    imageGridThw: inputs.image_grid_thw ?? undefined,
    pixelAttentionMask: inputs.pixel_attention_mask ?? undefined,
    spatialShapes: inputs.spatial_shapes ?? undefined,
    // Processors hand out sizes for encoders that take none, too.
    imageSizes: (forward_params.includes('image_sizes') && inputs.image_sizes) || undefined,
    pixelValuesVideos: inputs.pixel_values_videos ?? undefined,
    videoGridThw: inputs.video_grid_thw ?? undefined,
    tileCounts: spans?.map(({ pieces }) => pieces.length),
    tileGrids: gridsOf(tiles),
  };
}

/** The grids of all images; undefined where that of one is not known. */
function gridsOf(tiles: readonly PromptTiles[] | null): VisionInputs['tileGrids'] {
  const grids = tiles?.map(({ grid }) => grid);
  return grids?.every((grid) => grid !== undefined) ? (grids as VisionInputs['tileGrids']) : undefined;
}

/** The tiles of each image in its prompt. */
async function tilesOf({ vision, questions }: Attached, ids: ModelTensor, spans: readonly Span[]) {
  const text = await questions();
  const { tileBegin, tileName } = vision.marks as ImageMarks;
  const begin = tileBegin === undefined ? undefined : text.idOf(tileBegin);
  const marks = { begin: begin === undefined ? undefined : BigInt(begin), names: namesOf(text, tileName) };
  const [, columns] = ids.dims;
  return spans.map(({ sequence, pieces }) =>
    promptTiles((ids.data as BigInt64Array).subarray(sequence * columns, (sequence + 1) * columns), pieces, marks),
  );
}

/** More rows, or columns, of tiles than any model has. */
const MOST_TILES = 64;

/** The tokens that name tiles, as far as the tokenizer has them. */
function namesOf(text: Questions, form: string | undefined): TileMarkIds['names'] {
  const names = new Map<bigint, readonly [row: number, column: number]>();
  for (let row = 0; form !== undefined && row < MOST_TILES; row++)
    for (let column = 0; column < MOST_TILES; column++) {
      const id = text.idOf(form.replace('{row}', `${row + 1}`).replace('{column}', `${column + 1}`));
      if (id !== undefined) names.set(BigInt(id), [row, column]);
    }
  return names;
}

/** One image for each span, one tile for each piece. */
function bySpans(
  spans: readonly Span[],
  encoded: readonly EncodedImage[],
  tiles: readonly PromptTiles[] | null,
): PromptImage[] {
  return spans.map(({ sequence, pieces }, i) => {
    for (const [tile, { rows, columns }] of encoded[i].tiles.entries()) {
      const tokens = rows * columns;
      if (pieces[tile].length === tokens) continue;
      const got = `${pieces[tile].length} image tokens for tile ${tile} of image ${i}`;
      throw mismatch('ERR_SHAPE', 'input_ids', got, `${tokens}, of ${rows} rows and ${columns} columns`);
    }
    return { sequence, encoded: encoded[i], columns: pieces.flat(), ...(tiles && { tiles: tiles[i] }) };
  });
}

/** Gives each image (or video) its placeholders, which stand in their order over the whole batch; those of a video may be in pieces. */
function inOrder(ids: ModelTensor, tokens: VisualIds, encoded: readonly EncodedImage[]): PromptImage[] {
  const [rows, columns] = ids.dims;
  const data = ids.data as BigInt64Array;
  const images: PromptImage[] = [];
  const unequal = (found: number) =>
    mismatch(
      'ERR_SHAPE',
      'input_ids',
      `${found} visual tokens (${tokens.words}) in a sequence`,
      `the tokens of its images or videos: ${encoded.map(({ tokenCount }) => tokenCount).join(', ')}`,
    );
  for (let sequence = 0; sequence < rows; sequence++) {
    const own: number[] = [];
    for (let column = 0; column < columns; column++)
      if (tokens.has(data[sequence * columns + column])) own.push(column);
    for (let at = 0; at < own.length; ) {
      const image = encoded[images.length];
      if (image === undefined || at + image.tokenCount > own.length) throw unequal(own.length);
      images.push({ sequence, encoded: image, columns: own.slice(at, (at += image.tokenCount)) });
    }
  }
  if (images.length !== encoded.length)
    throw unequal(images.length === 0 ? 0 : images[images.length - 1].columns.length);
  return images;
}
