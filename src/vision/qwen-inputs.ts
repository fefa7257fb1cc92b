import { types } from 'node:util';
import { invalid, mismatch } from '../errors.js';
import { concatenated } from '../methods/matrix.js';
import { field, type OptionNames, options } from '../options.js';
import { dimsOf, floatData, isTensor, plain, type TensorLike, widened } from '../tensor.js';
import { tilesAtOnce } from './at-once.js';
import type { EncodedImage, InputNames, VisionInputs } from './vision-model.js';

/** Frames, rows and columns of patches. */
export type Grid = readonly [frames: number, rows: number, columns: number];

/** The patches of images (or videos) of one grid, one after the other. */
export interface Patches {
  /** [patches, C]. */
  readonly pixels: Float32Array;
  readonly grid: Grid;
}

/** One image, or video. */
export interface Visual extends Patches {
  readonly medium: EncodedImage['medium'];
}

type Inputs = Pick<VisionInputs, 'pixelValues' | 'imageGridThw' | 'pixelValuesVideos' | 'videoGridThw'>;
const INPUTS: OptionNames<Inputs> = {
  ...{ pixelValues: true, imageGridThw: true, pixelValuesVideos: true, videoGridThw: true },
};

/**
 * The images of one call, then its videos.
 *
 * @param merge rows, and columns, of patches that become one visual token
 * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`
 */
export function visualsOf(inputs: VisionInputs, names: InputNames, merge: number): Visual[] {
  const given = options<Inputs>('inputs', inputs, INPUTS);
  const { pixelValues, imageGridThw, pixelValuesVideos, videoGridThw } = given;
  const videos =
    isThere(pixelValuesVideos) || isThere(videoGridThw)
      ? patchesIn({ name: names.pixelValuesVideos, tensor: pixelValuesVideos, of: 'video' }, videoGridThw, names, merge)
      : [];
  // Without videos there has to be an image.
  const images =
    videos.length === 0 || isThere(pixelValues) || isThere(imageGridThw)
      ? patchesIn({ name: names.pixelValues, tensor: pixelValues, of: 'image' }, imageGridThw, names, merge)
      : [];
  return [...images, ...videos];
}

function isThere(tensor: TensorLike | null | undefined): boolean {
  return tensor !== undefined && tensor !== null;
}

interface Pixels {
  readonly name: string;
  readonly tensor: TensorLike | undefined;
  readonly of: EncodedImage['medium'];
}

function patchesIn(
  { name, tensor, of: medium }: Pixels,
  grids: TensorLike | undefined,
  names: InputNames,
  merge: number,
): Visual[] {
  const gridName = medium === 'image' ? names.imageGridThw : names.videoGridThw;
  if (medium === 'video' && !isThere(tensor))
    throw invalid('ERR_VALUE', name, tensor, `the frames of the videos that ${gridName} has grids of`);
  const pixels = floatData(name, tensor as TensorLike);
  const [count, channels] = pixels.dims;
  if (pixels.dims.length !== 2)
    throw invalid('ERR_SHAPE', `${name}.dims`, pixels.dims, `[patches of all ${medium}s, C]`);
  const data = widened(pixels);
  let at = 0;
  const visuals = gridsOf(grids, { name: gridName, of: medium }, merge).map((grid) => {
    const start = at;
    at += patchesOf(grid);
    return { medium, grid, pixels: data.subarray(start * channels, at * channels) };
  });
  if (at === count) return visuals;
  throw invalid('ERR_SHAPE', `${name}.dims`, pixels.dims, `${at} patches, as ${gridName} says`);
}

/** Patches of a grid. */
export function patchesOf([frames, rows, columns]: Grid): number {
  return frames * rows * columns;
}

function gridsOf(tensor: TensorLike | undefined, { name, of }: { name: string; of: string }, merge: number): Grid[] {
  const wanted = `the grid of each ${of}, [${of}s, 3] int64`;
  const given = isTensor(tensor) ? field(name, tensor, 'data') : null;
  if (!types.isBigInt64Array(given)) throw invalid('ERR_VALUE', name, tensor, wanted);
  const data = plain(given);
  const dims = dimsOf(name, tensor as TensorLike);
  if (dims.length !== 2 || dims[1] !== 3 || dims[0] < 1 || data.length !== 3 * dims[0])
    throw invalid('ERR_SHAPE', `${name}.dims`, dims, `[${of}s, 3]`);
  return Array.from({ length: dims[0] }, (_, i) => {
    const [frames, rows, columns] = [0, 1, 2].map((axis) => Number(data[3 * i + axis]));
    if (frames > 0 && rows > 0 && columns > 0 && rows % merge === 0 && columns % merge === 0)
      return [frames, rows, columns];
    const got = `[${frames}, ${rows}, ${columns}] for ${of} ${i}`;
    throw mismatch('ERR_VALUE', name, got, `frames, and rows and columns of patches that are multiples of ${merge}`);
  });
}

/** Patches of one run: where an encoder has scores of all patches with all, they are no more than those of one such image. */
const AT_ONCE = 4096;

/**
 * Which images and videos go into one run: those of equal grids, as the frames of one video, whose attention stays within each frame.
 * @param rowsAtOnce patches of one run that pay
 * @returns places in `visuals`
 */
export function runsOf(visuals: readonly Patches[], rowsAtOnce: number): number[][] {
  const runs: number[][] = [];
  const open = new Map<string, number[]>();
  for (const [i, { grid, pixels }] of visuals.entries()) {
    // A mask that multiplies by zero does not keep what is not finite from the others.
    const key = pixels.every(Number.isFinite) ? grid.join() : `${grid.join()} of ${i}`;
    const run = open.get(key);
    if (run && run.length < tilesAtOnce(patchesOf(grid), Math.min(AT_ONCE, rowsAtOnce))) {
      run.push(i);
      continue;
    }
    const own = [i];
    open.set(key, own);
    runs.push(own);
  }
  return runs;
}

/** Images of one grid as the frames of one video. */
export function asVideo(visuals: readonly Patches[]): Patches {
  const [{ grid }] = visuals;
  if (visuals.length === 1) return visuals[0];
  const all = concatenated(visuals.map(({ pixels }) => pixels));
  return { pixels: all, grid: [visuals.length * grid[0], grid[1], grid[2]] };
}
