import type { InferenceSession } from 'onnxruntime-common';
import { DesapError, invalid, mismatch } from '../errors.js';
import { rowsOf } from '../methods/matrix.js';
import { type OptionNames, options } from '../options.js';
import { floatData, type TensorLike, widened } from '../tensor.js';
import { tilesAtOnce } from './at-once.js';
import type { BlockFamily, EncoderFacts, EncoderRun, Feed, TileRows } from './block-family.js';
import type { ModelConfig } from './model-folder.js';
import {
  equalSequences,
  equalTiles,
  flagsFeed,
  givenGrids,
  gridOfTiles,
  imageOfTiles,
  integers,
  isFloat,
  partsOf,
  rowCount,
  tileRuns,
} from './tile-inputs.js';
import { pixelExtents, waves } from './trial.js';
import type { InputNames, VisionInputs } from './vision-model.js';

/**
 * Idefics3, SmolVLM, SmolVLM2: tiles of one size, the whole image among them and last. Each tile is a sequence by itself; squares of
 * patches are shuffled into one visual token. The processor fills a batch up with tiles of zeros, which the encoder drops.
 */
export const IDEFICS3 = {
  name: 'idefics3',
  marks: {
    beforeLast: '<global-img>',
    tileBegin: '<fake_token_around_image>',
    tileName: '<row_{row}_col_{column}>',
  },
  premise: ', a visual token for each square of patches',
  read(inputs, names, encoder) {
    const { tileCounts, tileGrids: _, ...given } = options<Inputs>('inputs', inputs, INPUTS);
    const tiles = tilesOf(given, names);
    const own = { argument: names.tileCounts, of: names.pixelValues };
    const images = tileCounts === undefined ? tiles.rows : imageOfTiles(tileCounts, tiles.rows.length, own);
    const size = CHANNELS * tiles.height * tiles.width;
    return tileRuns(images).map(([first, end]) =>
      runOf(
        { ...tiles, pixels: tiles.pixels.subarray(first * size, end * size) },
        images.slice(first, end),
        names,
        encoder,
      ),
    );
  },
  tiled(inputs, names, encoder) {
    const { tileCounts, tileGrids, ...given } = options<Inputs>('inputs', inputs, INPUTS);
    const all = tilesOf(given, names);
    const own = { argument: names.tileCounts, of: names.pixelValues };
    const images = tileCounts === undefined ? all.rows : imageOfTiles(tileCounts, all.rows.length, own);
    const size = CHANNELS * all.height * all.width;
    const count = images[images.length - 1] + 1;
    const grids = givenGrids(names.tileGrids, tileGrids, count);
    return Array.from({ length: count }, (_, image) => {
      const [first, end] = [images.indexOf(image), images.lastIndexOf(image) + 1];
      const pixels = all.pixels.slice(first * size, end * size);
      const [tiles, argument] = [end - first, `${names.tileGrids}[${image}]`];
      return {
        tiles,
        grid: () => gridOfTiles(grids[image], tiles - 1, { argument }),
        run: (some) =>
          runOf(
            { ...all, pixels: rowsOf({ data: pixels, cols: size }, some).data },
            some.map(() => 0),
            names,
            encoder,
          ),
        units: (_tile, whole) => whole,
      };
    });
  },
  trials(session: InferenceSession, { vision_config: vision = {} }: ModelConfig): VisionInputs[] {
    const stated = pixelExtents(session).slice(-2);
    const [height, width] = [0, 1].map((axis) => stated[axis] ?? vision.image_size ?? IMAGE_SIZE);
    const area = height * width;
    return [
      {
        pixelValues: { data: waves(2 * CHANNELS * area), dims: [1, 2, CHANNELS, height, width] },
        pixelAttentionMask: { data: new Uint8Array(2 * area).fill(1), dims: [1, 2, height, width] },
      },
    ];
  },
} satisfies BlockFamily;

/** The defaults of Idefics3's config. */
const IMAGE_SIZE = 224;
const PATCH = 32;
const CHANNELS = 3;

type Inputs = Pick<VisionInputs, 'pixelValues' | 'pixelAttentionMask' | 'tileCounts' | 'tileGrids'>;
const INPUTS: OptionNames<Inputs> = { pixelValues: true, pixelAttentionMask: true, tileCounts: true, tileGrids: true };

/** The tiles of a call without those of padding. */
interface Tiles {
  /** [tiles, 3, H, W]. */
  readonly pixels: Float32Array;
  /** Which row of the batch each belongs to, counted without rows that have none. */
  readonly rows: readonly number[];
  readonly height: number;
  readonly width: number;
}

/** @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE` */
function tilesOf(inputs: Inputs, names: InputNames): Tiles {
  const pixels = floatData(names.pixelValues, inputs.pixelValues as TensorLike);
  const { dims } = pixels;
  if (dims.length !== 5 || dims[2] !== CHANNELS || dims.some((extent) => extent < 1))
    throw invalid('ERR_SHAPE', `${names.pixelValues}.dims`, dims, '[images, tiles, 3, H, W]');
  const [images, perImage, , height, width] = dims;
  const data = widened(pixels);
  const size = CHANNELS * height * width;
  const isEmpty = (tile: number) => data.subarray(tile * size, (tile + 1) * size).every((value) => value === 0);
  const isHidden = hiddenTiles(inputs, dims, names);

  const kept: number[] = [];
  const rows: number[] = [];
  for (let image = 0, row = 0; image < images; image++) {
    const before = kept.length;
    for (let tile = image * perImage; tile < (image + 1) * perImage; tile++) {
      const [empty, hidden] = [isEmpty(tile), isHidden(tile)];
      if (hidden && !empty)
        throw mismatch(
          'ERR_VALUE',
          names.pixelAttentionMask,
          `${nameOf(tile, perImage)} hidden, with pixels`,
          'zeros there',
        );
      if (empty && hidden === false)
        throw mismatch(
          'ERR_VALUE',
          names.pixelValues,
          `${nameOf(tile, perImage)} of zeros, which is not hidden`,
          'pixels: the encoder drops tiles of zeros',
        );
      if (empty) continue;
      kept.push(tile);
      rows.push(row);
    }
    if (kept.length > before) row++;
  }
  if (kept.length === 0) throw mismatch('ERR_VALUE', names.pixelValues, 'zeros only', 'at least one tile with pixels');
  const whole = kept.length === images * perImage;
  return { pixels: whole ? data : rowsOf({ data, cols: size }, kept).data, rows, height, width };
}

function nameOf(tile: number, perImage: number): string {
  return `tile ${tile % perImage} of row ${Math.floor(tile / perImage)}`;
}

/**
 * Which tiles a mask hides; without a mask nothing is known of any.
 * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`; `ERR_VALUE` for a tile of which a part is hidden
 */
function hiddenTiles(
  { pixelAttentionMask }: Inputs,
  [images, perImage, , height, width]: readonly number[],
  { pixelAttentionMask: name }: InputNames,
): (tile: number) => boolean | undefined {
  if (pixelAttentionMask === undefined || pixelAttentionMask === null) return () => undefined;
  const { data, dims } = integers(name, pixelAttentionMask, 'flags, [images, tiles, H, W] bool');
  if (dims.join() !== [images, perImage, height, width].join())
    throw invalid('ERR_SHAPE', `${name}.dims`, dims, `[${[images, perImage, height, width].join(', ')}]`);
  const area = height * width;
  return (tile) => {
    let seen = 0;
    for (let i = tile * area; i < (tile + 1) * area; i++) if (data[i]) seen++;
    if (seen === 0 || seen === area) return seen === 0;
    throw mismatch(
      'ERR_VALUE',
      name,
      `${seen} of ${area} pixels of ${nameOf(tile, perImage)}`,
      'all of a tile, or none: visual tokens are made of whole tiles',
    );
  };
}

function runOf(
  { pixels, height, width }: Omit<Tiles, 'rows'>,
  images: readonly number[],
  names: InputNames,
  encoder: EncoderFacts,
): EncoderRun {
  const count = images.length;
  const [pixelInput, maskInput] = [true, false].map((pixels) =>
    encoder.inputs.find(({ type }) => isFloat(type) === pixels),
  );
  if (pixelInput === undefined)
    throw new DesapError('ERR_GRAPH', 'the vision encoder: looked for an input of pixels; found none');
  const area = height * width;
  const feedsOf = (first: number, end: number) => {
    // Exporters leave the axis of the batch away, or not.
    const lead = pixelInput.dims?.length === 4 ? [end - first] : [1, end - first];
    const data = pixels.subarray(first * CHANNELS * area, end * CHANNELS * area);
    const feeds: Record<string, Feed> = {
      [pixelInput.name]: { type: 'float32', data, dims: [...lead, CHANNELS, height, width] },
    };
    if (maskInput) {
      const shown = new Uint8Array((end - first) * area).fill(1);
      feeds[maskInput.name] = flagsFeed(maskInput.type, shown, [...lead, height, width]);
    }
    return feeds;
  };
  const patches = area / (encoder.config.vision_config?.patch_size ?? PATCH) ** 2;
  return {
    feeds: feedsOf(0, count),
    parts: partsOf(count, tilesAtOnce(patches, encoder.rowsAtOnce), feedsOf),
    sequences: (hidden) => equalSequences(hidden, count),
    tiles: (hidden, features) => tileRows(hidden, features, { images, height, width, names }),
  };
}

interface Geometry {
  readonly images: readonly number[];
  readonly height: number;
  readonly width: number;
  readonly names: InputNames;
}

/** @throws DesapError `ERR_SHAPE` for another number of tiles, `ERR_GRAPH` as {@link equalTiles} */
function tileRows(hidden: readonly number[], features: readonly number[], geometry: Geometry): TileRows[] {
  const { images, height, width, names } = geometry;
  const count = images.length;
  const patches = hidden[hidden.length - 2];
  const tokens = rowCount(features) / count;
  if (rowCount(hidden) !== count * patches || !Number.isInteger(tokens))
    throw mismatch(
      'ERR_SHAPE',
      names.pixelValues,
      `${count} tiles, and states of ${rowCount(hidden) / patches}`,
      `${count}`,
    );
  return equalTiles(patches, tokens, { images, height, width, noun: 'tile' });
}
