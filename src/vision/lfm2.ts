import type { InferenceSession } from 'onnxruntime-common';
import { DesapError, invalid, mismatch } from '../errors.js';
import { rowsOf } from '../methods/matrix.js';
import { type OptionNames, options } from '../options.js';
import { floatData, type TensorLike, widened } from '../tensor.js';
import {
  type BlockFamily,
  type EncoderFacts,
  type EncoderRun,
  type Feed,
  type Sequence,
  type TileRows,
  unitsOfGrid,
} from './block-family.js';
import type { ModelConfig } from './model-folder.js';
import {
  equalSequences,
  flagsFeed,
  givenGrids,
  gridOfTiles,
  imageOfTiles,
  integers,
  isFloat,
  rowCount,
  tileRuns,
} from './tile-inputs.js';
import { pixelExtents, waves } from './trial.js';
import type { InputNames, VisionInputs } from './vision-model.js';

/**
 * LFM2-VL, LFM2.5-VL: tiles of any grid of patches, the thumbnail last, filled up with rows of padding to one length. Each tile is a
 * sequence by itself; squares of patches are joined into one visual token.
 */
export const LFM2 = {
  name: 'lfm2',
  marks: { afterLast: '<|image_end|>', tileName: '<|img_row_{row}_col_{column}|>' },
  premise: ', a visual token for each square of patches, and padding left out',
  read(inputs, names, encoder) {
    const { tileCounts, tileGrids: _, ...given } = options<Inputs>('inputs', inputs, INPUTS);
    const tiles = tilesOf(given, names, encoder.config.downsample_factor ?? DOWNSAMPLE);
    const count = tiles.grids.length;
    const own = { argument: names.tileCounts, of: names.pixelValues };
    const images = imageOfTiles(tileCounts ?? [count], count, own);
    return tileRuns(images).map(([first, end]) =>
      runOf(part(tiles, first, end), images.slice(first, end), names, encoder),
    );
  },
  tiled(inputs, names, encoder) {
    const { tileCounts, tileGrids, ...given } = options<Inputs>('inputs', inputs, INPUTS);
    const all = tilesOf(given, names, encoder.config.downsample_factor ?? DOWNSAMPLE);
    const [total, length, channels] = all.dims;
    const own = { argument: names.tileCounts, of: names.pixelValues };
    const images = imageOfTiles(tileCounts ?? [total], total, own);
    const count = images[images.length - 1] + 1;
    const grids = givenGrids(names.tileGrids, tileGrids, count);
    return Array.from({ length: count }, (_, image) => {
      const [first, end] = [images.indexOf(image), images.lastIndexOf(image) + 1];
      const [tiles, argument] = [end - first, `${names.tileGrids}[${image}]`];
      const { grids: shapes, side, pixels: given } = part(all, first, end);
      const pixels = given.slice();
      // The whole view has the image's shape.
      const [rows, columns] = shapes[tiles - 1];
      return {
        tiles,
        grid: () => gridOfTiles(grids[image], tiles - 1, { argument, aspect: columns / rows }),
        run: (some) =>
          runOf(
            {
              pixels: rowsOf({ data: pixels, cols: length * channels }, some).data,
              dims: [some.length, length, channels],
              grids: some.map((tile) => shapes[tile]),
              side,
            },
            some.map(() => 0),
            names,
            encoder,
          ),
        units: (tile) => ({ rows: shapes[tile][0] / side, columns: shapes[tile][1] / side }),
      };
    });
  },
  trials(session: InferenceSession, { vision_config: vision = {}, downsample_factor: side = DOWNSAMPLE }: ModelConfig) {
    const channels = pixelExtents(session)[2] ?? CHANNELS * (vision.patch_size ?? PATCH) ** 2;
    // Two grids that are no squares, the smaller one with rows of padding.
    const grids = [
      [4 * side, 3 * side],
      [2 * side, 3 * side],
    ] as const;
    const patches = grids[0][0] * grids[0][1];
    const pixels = waves(2 * patches * channels);
    pixels.fill(0, (patches + grids[1][0] * grids[1][1]) * channels);
    return [
      {
        pixelValues: { data: pixels, dims: [2, patches, channels] },
        pixelAttentionMask: { data: BigInt64Array.from(shown(grids, patches), BigInt), dims: [2, patches] },
        spatialShapes: { data: BigInt64Array.from(grids.flat(), BigInt), dims: [2, 2] },
      },
    ];
  },
} satisfies BlockFamily;

/** The defaults of LFM2-VL's config. */
const DOWNSAMPLE = 2;
const PATCH = 16;
const CHANNELS = 3;

type Inputs = Pick<VisionInputs, 'pixelValues' | 'pixelAttentionMask' | 'spatialShapes' | 'tileCounts' | 'tileGrids'>;
const INPUTS: OptionNames<Inputs> = {
  ...{ pixelValues: true, pixelAttentionMask: true, spatialShapes: true, tileCounts: true, tileGrids: true },
};

interface Tiles {
  /** [tiles, patches, C], the patches of a tile first, then padding. */
  readonly pixels: Float32Array;
  readonly dims: readonly number[];
  readonly grids: readonly (readonly [rows: number, columns: number])[];
  /** Rows, and columns, of patches that become one visual token. */
  readonly side: number;
}

/** @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE` */
function tilesOf(inputs: Inputs, names: InputNames, side: number): Tiles {
  const pixels = floatData(names.pixelValues, inputs.pixelValues as TensorLike);
  const { dims } = pixels;
  if (dims.length !== 3 || dims.some((extent) => extent < 1))
    throw invalid('ERR_SHAPE', `${names.pixelValues}.dims`, dims, '[tiles, patches, C]');
  const [count, length] = dims;
  const wanted = 'rows and columns of patches of each tile, [tiles, 2] int64';
  const shapes = integers(names.spatialShapes, inputs.spatialShapes as TensorLike, wanted);
  if (shapes.dims.length !== 2 || shapes.dims[0] !== count || shapes.dims[1] !== 2)
    throw invalid('ERR_SHAPE', `${names.spatialShapes}.dims`, shapes.dims, `[${count}, 2]`);
  const grids = Array.from({ length: count }, (_, tile) => {
    const [rows, columns] = [Number(shapes.data[2 * tile]), Number(shapes.data[2 * tile + 1])];
    if (rows > 0 && columns > 0 && rows % side === 0 && columns % side === 0 && rows * columns <= length)
      return [rows, columns] as const;
    throw mismatch(
      'ERR_VALUE',
      names.spatialShapes,
      `[${rows}, ${columns}] for tile ${tile}`,
      `rows and columns of patches that are multiples of ${side}, ${length} patches at most`,
    );
  });
  checkMask(inputs, dims, grids, names);
  return { pixels: widened(pixels), dims, grids, side };
}

/** Some of the tiles. */
function part({ pixels, dims: [, length, channels], grids, side }: Tiles, first: number, end: number): Tiles {
  const size = length * channels;
  const dims = [end - first, length, channels];
  return { pixels: pixels.subarray(first * size, end * size), dims, grids: grids.slice(first, end), side };
}

/** @throws DesapError `ERR_VALUE` for a mask that shows other patches than the grids */
function checkMask(
  { pixelAttentionMask }: Inputs,
  [count, length]: readonly number[],
  grids: Tiles['grids'],
  { pixelAttentionMask: name, spatialShapes }: InputNames,
): void {
  if (pixelAttentionMask === undefined || pixelAttentionMask === null) return;
  const { data, dims } = integers(name, pixelAttentionMask, 'flags of patches, [tiles, patches] int64');
  if (dims.join() !== [count, length].join()) throw invalid('ERR_SHAPE', `${name}.dims`, dims, `[${count}, ${length}]`);
  for (const [tile, [rows, columns]] of grids.entries()) {
    const flags = data.subarray(tile * length, (tile + 1) * length);
    const wrong = flags.findIndex((flag: number | bigint, patch: number) => Boolean(flag) !== patch < rows * columns);
    if (wrong >= 0)
      throw mismatch(
        'ERR_VALUE',
        name,
        `${flags[wrong]} for patch ${wrong} of tile ${tile}`,
        `the first ${rows * columns} patches shown and no others, as ${spatialShapes} says`,
      );
  }
}

function runOf(tiles: Tiles, images: readonly number[], names: InputNames, encoder: EncoderFacts): EncoderRun {
  const { pixels, dims, grids } = tiles;
  const [count, length] = dims;
  const integers = encoder.inputs.filter(({ type }) => !isFloat(type));
  // Both are int64: of the two the grids have an extent of 2, or else they are known by their name.
  const shapes =
    integers.find(({ dims: stated }) => stated?.[1] === 2) ?? integers.find(({ name }) => /shape|size/i.test(name));
  const feeds: Record<string, Feed> = {};
  for (const input of encoder.inputs) {
    const { name, type } = input;
    if (isFloat(type)) feeds[name] = { type: 'float32', data: pixels, dims };
    else if (input !== shapes) feeds[name] = flagsFeed(type, shown(grids, length), [count, length]);
    else feeds[name] = { type: 'int64', data: BigInt64Array.from(grids.flat(), BigInt), dims: [count, 2] };
  }
  return {
    feeds,
    sequences: (hidden) => sequencesOf(grids, hidden),
    tiles: (hidden, features) => tileRows(tiles, images, hidden, features, names),
  };
}

/** Flags [tiles, patches] of the patches that are no padding. */
function shown(grids: Tiles['grids'], length: number): Uint8Array {
  const flags = new Uint8Array(grids.length * length);
  for (const [tile, [rows, columns]] of grids.entries()) flags.fill(1, tile * length, tile * length + rows * columns);
  return flags;
}

/** What a tile has beyond its grid is padding. */
function sequencesOf(grids: Tiles['grids'], hidden: readonly number[]): Sequence[] {
  const all = equalSequences(hidden, grids.length);
  return grids.map(([rows, columns], tile) => ({ firstRow: all[tile].firstRow, patches: rows * columns }));
}

/** @throws DesapError `ERR_GRAPH` for states or features of other tiles */
function tileRows(
  { dims, grids, side }: Tiles,
  images: readonly number[],
  hidden: readonly number[],
  features: readonly number[],
  names: InputNames,
): TileRows[] {
  const [count, length] = dims;
  const tokens = grids.map(([rows, columns]) => (rows / side) * (columns / side));
  const all = tokens.reduce((sum, one) => sum + one, 0);
  if (rowCount(hidden) !== count * length || rowCount(features) !== all)
    throw new DesapError(
      'ERR_GRAPH',
      `the vision encoder: got states [${hidden.join(', ')}] and features [${features.join(', ')}] of ${names.pixelValues} [${dims.join(', ')}], wanted ${count * length} rows of states and ${all} of features`,
    );
  const sequences = sequencesOf(grids, hidden);
  let firstToken = 0;
  return grids.map(([rows, columns], tile) => {
    const first = firstToken;
    firstToken += tokens[tile];
    return {
      ...{ image: images[tile], medium: 'image' as const, frame: 0, rows: rows / side, columns: columns / side },
      ...sequences[tile],
      ...{ unit: unitsOfGrid(rows, columns, side), firstToken: first, tokens: tokens[tile] },
    };
  });
}
