/** The inputs of LLaVA-NeXT as tiles of images. */
import { invalid, mismatch } from '../errors.js';
import { floatData, integerData, type TensorLike, widened } from '../tensor.js';
import { type Grid, gridOf, type ImageSize, type TileRule, tileCount } from './anyres.js';
import type { InputNames } from './vision-model.js';

/** One image of a call. */
export interface Tiled {
  readonly size: ImageSize;
  readonly grid: Grid;
  /** The whole image and its tiles, [3, S, S] each. */
  readonly tiles: readonly Float32Array[];
}

/** Longer than any image's edge. */
const MAX_EDGE = 2 ** 31 - 1;

/**
 * @param imageSizes [images, 2], height and width of each
 * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`
 */
export function sizesOf(imageSizes: TensorLike | undefined, { imageSizes: name }: InputNames): ImageSize[] {
  const { data, dims } = integerData(
    name,
    imageSizes as TensorLike,
    'int64 (BigInt64Array) or int32 (Int32Array) [images, 2]',
  );
  const [images, two] = dims;
  if (dims.length !== 2 || two !== 2 || images < 1 || data.length !== 2 * images)
    throw invalid('ERR_SHAPE', `${name}.dims`, dims, '[images, 2]: height and width');
  const edges = Array.from(data, Number);
  const bad = edges.findIndex((edge) => edge < 1 || edge > MAX_EDGE);
  if (bad >= 0) throw invalid('ERR_VALUE', name, edges[bad], `pixels of an edge, from 1 to ${MAX_EDGE}`);
  return Array.from({ length: images }, (_, i) => ({ height: edges[2 * i], width: edges[2 * i + 1] }));
}

/**
 * The tiles of each image.
 *
 * @param pixelValues [images, tiles, 3, S, S], where images with fewer tiles than others are filled up with zeros; or [tiles of all images,
 *   3, S, S]
 * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`
 */
export function tilesOf(
  pixelValues: TensorLike,
  sizes: readonly ImageSize[],
  rule: TileRule,
  { pixelValues: name }: InputNames,
): Tiled[] {
  const pixels = floatData(name, pixelValues);
  const { dims } = pixels;
  const isPadded = dims.length === 5;
  const wanted = `[${sizes.length}, tiles, 3, ${rule.side}, ${rule.side}], or [tiles of all images, 3, ..]`;
  const extents = dims.slice(-3);
  if ((dims.length !== 4 && !isPadded) || extents.join() !== `3,${rule.side},${rule.side}`)
    throw invalid('ERR_SHAPE', `${name}.dims`, dims, wanted);
  if (isPadded && dims[0] !== sizes.length) throw invalid('ERR_SHAPE', `${name}.dims`, dims, wanted);
  const grids = sizes.map((size) => gridOf(size, rule));
  const counts = grids.map(tileCount);
  const given = isPadded ? dims[1] : dims[0];
  const all = isPadded ? Math.max(...counts) : counts.reduce((sum, count) => sum + count, 0);
  if (given < all || (given > all && !isPadded))
    throw mismatch('ERR_SHAPE', `${name}.dims`, `${given} tiles`, `${all}, as the sizes of the images ask for`);
  const data = widened(pixels);
  const size = extents.reduce((product, extent) => product * extent, 1);
  let at = 0;
  return sizes.map((own, i) => {
    const first = isPadded ? i * given : at;
    at += counts[i];
    const tile = (t: number) => data.subarray((first + t) * size, (first + t + 1) * size);
    const padding = isPadded ? data.subarray((first + counts[i]) * size, (first + given) * size) : [];
    if (padding.some((value) => value !== 0))
      throw mismatch(
        'ERR_SHAPE',
        `${name}.dims`,
        `more than ${counts[i]} tiles of image ${i}`,
        `${counts[i]}, as its size asks for, and zeros behind them`,
      );
    return { size: own, grid: grids[i], tiles: Array.from({ length: counts[i] }, (_, t) => tile(t)) };
  });
}
