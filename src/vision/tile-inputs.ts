/** What families with tiles have in common: masks, which image each tile belongs to, and how many rows came out. */
import { DesapError, invalid, mismatch } from '../errors.js';
import type { Grid } from '../methods/method.js';
import { entries } from '../options.js';
import { integerData, isArray, type TensorLike } from '../tensor.js';
import { type Feed, type Feeds, type Sequence, type TileRows, unitsOfGrid } from './block-family.js';

/** The integers of a tensor, or its flags as 0 and 1. */
export interface Integers {
  readonly data: Uint8Array | Int32Array | BigInt64Array;
  readonly dims: readonly number[];
}

/**
 * The memory of an int64, int32 or bool tensor, checked for its element count. Nothing is copied.
 *
 * @param wanted what it is, for messages
 * @throws DesapError `ERR_DTYPE`, `ERR_SHAPE`
 */
export function integers(argument: string, tensor: TensorLike, wanted: string): Integers {
  return integerData(argument, tensor, wanted);
}

/**
 * Which image each tile belongs to: the tiles of one image follow each other.
 *
 * @param tiles how many there are
 * @param names of the counts, and of what has the tiles, for messages
 * @throws DesapError `ERR_VALUE` for counts that are none, or of other tiles
 */
export function imageOfTiles(
  given: readonly number[],
  tiles: number,
  { argument, of }: { readonly argument: string; readonly of: string },
): number[] {
  if (!isArray(given)) throw invalid('ERR_VALUE', argument, given, 'how many tiles each image has');
  const counts = entries(argument, given as readonly number[]);
  const bad = counts.findIndex((count) => !Number.isSafeInteger(count) || count < 1);
  if (bad >= 0) throw invalid('ERR_VALUE', `${argument}[${bad}]`, counts[bad], 'at least one tile');
  const sum = counts.reduce((total, count) => total + count, 0);
  if (sum !== tiles)
    throw mismatch('ERR_VALUE', argument, `${sum} tiles (${counts.join(', ')})`, `${tiles}, those of ${of}`);
  return counts.flatMap((count, image) => new Array<number>(count).fill(image));
}

/** Tiles of one run: each has attention scores of its own, and memory for all of them at once. One image may have more. */
const AT_ONCE = 20;

/**
 * Which tiles go into one run: those of whole images, which follow each other.
 *
 * @param images which image each tile belongs to, ascending
 * @returns [first, end) of each run
 */
export function tileRuns(images: readonly number[]): [first: number, end: number][] {
  const runs: [number, number][] = [];
  for (let first = 0, end = 0; first < images.length; first = end) {
    const imageEnd = () => images.lastIndexOf(images[end]) + 1;
    do end = imageEnd();
    while (end < images.length && imageEnd() - first <= AT_ONCE);
    runs.push([first, end]);
  }
  return runs;
}

/**
 * What a run is fed, by some tiles at a time; undefined where that is all of them.
 * @param feedsOf what the tiles from the first to the end are fed
 */
export function partsOf(
  tiles: number,
  atOnce: number,
  feedsOf: (first: number, end: number) => Feeds,
): Feeds[] | undefined {
  if (tiles <= atOnce) return undefined;
  const count = Math.ceil(tiles / atOnce);
  return Array.from({ length: count }, (_, i) => feedsOf(i * atOnce, Math.min(tiles, (i + 1) * atOnce)));
}

/** The extent of the squares of patches that become one visual token; null where these are no squares. */
function sideOfUnit(patches: number, tokens: number): number | null {
  const side = Math.round(Math.sqrt(patches / tokens));
  return side > 0 && side * side * tokens === patches ? side : null;
}

/**
 * Sequences of as many rows each, one behind the other.
 * @throws DesapError `ERR_GRAPH` for states that are not of so many
 */
export function equalSequences(hidden: readonly number[], count: number): Sequence[] {
  const patches = rowCount(hidden) / count;
  if (!Number.isInteger(patches))
    throw new DesapError(
      'ERR_GRAPH',
      `the vision encoder: got states [${hidden.join(', ')}] of ${count} tiles, wanted as many rows for each`,
    );
  return Array.from({ length: count }, (_, i) => ({ firstRow: i * patches, patches }));
}

/** Images or tiles of one size, and what an error calls one of them. */
export interface EqualTiles {
  /** Which image of the call each belongs to. */
  readonly images: readonly number[];
  readonly height: number;
  readonly width: number;
  readonly noun: 'image' | 'tile';
}

/**
 * Tiles of one size, each of as many patches and visual tokens. The patches need not reach a tile's edges: 384 pixels are 27 patches of 14.
 * @param patches of a tile
 * @param tokens of a tile
 * @throws DesapError `ERR_GRAPH` for visual tokens that are neither patches nor squares of patches
 */
export function equalTiles(patches: number, tokens: number, { images, height, width, noun }: EqualTiles): TileRows[] {
  const side = sideOfUnit(patches, tokens);
  const rows = Math.round(Math.sqrt((patches * height) / width));
  const columns = patches / rows;
  if (side === null || !Number.isInteger(columns) || rows % side !== 0 || columns % side !== 0)
    throw new DesapError(
      'ERR_GRAPH',
      `the vision encoder: got ${patches} patches and ${tokens} visual tokens for ${noun === 'image' ? 'an' : 'a'} ${noun} of ${height} x ${width}, wanted a token for each patch, or for each square of patches`,
    );
  const unit = side === 1 ? null : unitsOfGrid(rows, columns, side);
  return images.map((image, tile) => ({
    ...{ image, medium: 'image' as const, frame: 0, rows: rows / side, columns: columns / side },
    ...{ firstRow: tile * patches, patches, unit, firstToken: tile * tokens, tokens },
  }));
}

/** Whether a TensorProto.DataType is float32 or float16: of an encoder's inputs those are the pixels. */
export function isFloat(type: number): boolean {
  return type === 1 || type === 10;
}

/** Flags as the file takes them: bool, or else int64. */
export function flagsFeed(type: number, flags: Uint8Array, dims: readonly number[]): Feed {
  const isBool = type === 9;
  return isBool
    ? { type: 'bool', data: flags, dims }
    : { type: 'int64', data: BigInt64Array.from(flags, BigInt), dims };
}

/** Rows of a tensor [.., columns]. */
export function rowCount(dims: readonly number[]): number {
  return dims.slice(0, -1).reduce((product, extent) => product * extent, 1);
}

/**
 * Rows and columns of tiles that an image was cut into: the given ones, or the only ones that there can be.
 *
 * @param tiles how many
 * @param aspect columns by rows of the whole view, where that has the image's shape
 * @throws DesapError `ERR_VALUE` for a grid of other tiles, and where several are possible
 */
export function gridOfTiles(
  given: readonly [rows: number, columns: number] | undefined,
  tiles: number,
  { argument, aspect }: { readonly argument: string; readonly aspect?: number },
): Grid {
  if (given !== undefined) {
    const [rows, columns] = isArray(given) ? entries(argument, given as readonly number[]) : [];
    if (Number.isSafeInteger(rows) && rows > 0 && rows * columns === tiles) return { rows, columns };
    throw invalid('ERR_VALUE', argument, given, `[rows, columns] of ${tiles} tiles`);
  }
  const grids = Array.from({ length: tiles }, (_, i) => i + 1)
    .filter((rows) => tiles % rows === 0)
    .map((rows) => ({ rows, columns: tiles / rows }));
  if (grids.length === 1) return grids[0];
  const off = ({ rows, columns }: Grid) => Math.abs(Math.log(columns / rows / (aspect as number)));
  if (aspect !== undefined) return grids.reduce((best, grid) => (off(grid) < off(best) ? grid : best));
  const several = grids.map(({ rows, columns }) => `${rows} x ${columns}`).join(', ');
  throw mismatch('ERR_VALUE', argument, 'undefined', `rows and columns of the ${tiles} tiles, which can be ${several}`);
}

/**
 * The grid that a caller gives of each image.
 * @throws DesapError `ERR_VALUE` for grids of other images
 */
export function givenGrids(
  argument: string,
  given: readonly (readonly [rows: number, columns: number])[] | undefined,
  images: number,
): (readonly [rows: number, columns: number] | undefined)[] {
  if (given === undefined) return new Array(images).fill(undefined);
  if (!isArray(given)) throw invalid('ERR_VALUE', argument, given, 'a list of [rows, columns], one for each image');
  const grids = entries(argument, given);
  if (grids.length === images) return grids;
  throw mismatch('ERR_VALUE', argument, `${grids.length} grids`, `${images}, one for each image`);
}
