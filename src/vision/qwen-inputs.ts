import { types } from 'node:util';
import { invalid, mismatch } from '../errors.js';
import { options } from '../options.js';
import { floatData, type TensorLike, widened } from '../tensor.js';
import type { InputNames, VisionInputs } from './vision-model.js';

/** Frames, rows and columns of patches. */
export type Grid = readonly [frames: number, rows: number, columns: number];

/** The patches of images of one grid, one image after the other. */
export interface Patches {
  /** [patches, C]. */
  readonly pixels: Float32Array;
  readonly grid: Grid;
}

type Inputs = Pick<VisionInputs, 'pixelValues' | 'imageGridThw'>;

/**
 * The images of one call.
 *
 * @param merge rows, and columns, of patches that become one visual token
 * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`
 */
export function imagesOf(inputs: VisionInputs, names: InputNames, merge: number): Patches[] {
  const { pixelValues, imageGridThw } = options<Inputs>('inputs', inputs, { pixelValues: true, imageGridThw: true });
  const pixels = floatData(names.pixelValues, pixelValues as TensorLike);
  const [count, channels] = pixels.dims;
  if (pixels.dims.length !== 2)
    throw invalid('ERR_SHAPE', `${names.pixelValues}.dims`, pixels.dims, '[patches of all images, C]');
  const data = widened(pixels);
  let at = 0;
  const images = gridsOf(imageGridThw, names.imageGridThw, merge).map((grid) => {
    const start = at;
    at += patchesOf(grid);
    return { grid, pixels: data.subarray(start * channels, at * channels) };
  });
  if (at === count) return images;
  throw invalid('ERR_SHAPE', `${names.pixelValues}.dims`, pixels.dims, `${at} patches, as ${names.imageGridThw} says`);
}

/** Patches of a grid. */
export function patchesOf([frames, rows, columns]: Grid): number {
  return frames * rows * columns;
}

function gridsOf(tensor: VisionInputs['imageGridThw'], name: string, merge: number): Grid[] {
  const data = tensor?.data;
  if (!types.isBigInt64Array(data))
    throw invalid('ERR_VALUE', name, tensor, 'the grid of each image, [images, 3] int64');
  const { dims } = tensor as { dims: readonly number[] };
  if (dims.length !== 2 || dims[1] !== 3 || dims[0] < 1 || data.length !== 3 * dims[0])
    throw invalid('ERR_SHAPE', `${name}.dims`, dims, '[images, 3]');
  return Array.from({ length: dims[0] }, (_, image) => {
    const [frames, rows, columns] = [0, 1, 2].map((axis) => Number(data[3 * image + axis]));
    if (frames > 0 && rows > 0 && columns > 0 && rows % merge === 0 && columns % merge === 0)
      return [frames, rows, columns];
    const got = `[${frames}, ${rows}, ${columns}] for image ${image}`;
    throw mismatch('ERR_VALUE', name, got, `frames, and rows and columns of patches that are multiples of ${merge}`);
  });
}

/** Patches of one run: its attention scores grow with their count, and are no more than those of one such image. */
const AT_ONCE = 4096;

/**
 * Which images go into one run: those of equal grids, as the frames of one video, whose attention stays within each frame. One that is not
 * finite goes alone: a mask that multiplies by zero does not keep NaN from the others.
 * @returns places in `images`
 */
export function runsOf(images: readonly Patches[]): number[][] {
  const runs: number[][] = [];
  const open = new Map<string, number[]>();
  for (const [i, { grid, pixels }] of images.entries()) {
    const key = pixels.every(Number.isFinite) ? grid.join() : `${grid.join()} of image ${i}`;
    const run = open.get(key);
    if (run && (run.length + 1) * patchesOf(grid) <= AT_ONCE) {
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
export function asVideo(images: readonly Patches[]): Patches {
  const [{ pixels, grid }] = images;
  if (images.length === 1) return images[0];
  const all = new Float32Array(images.length * pixels.length);
  for (const [i, image] of images.entries()) all.set(image.pixels, i * pixels.length);
  return { pixels: all, grid: [images.length * grid[0], grid[1], grid[2]] };
}
