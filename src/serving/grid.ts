/** Which rows of an image a model takes that places them by `image_grid_thw`: all of them, or those of a rectangle. */
import { invalid, mismatch } from '../errors.js';
import { entries } from '../options.js';
import { int32Array, integer, isArray } from '../tensor.js';

/** Frames, rows and columns of patches. */
export type GridThw = readonly [frames: number, rows: number, columns: number];

/** Patches on a side of what one visual token joins, in every Qwen-VL. */
const SIDE = 2;
const MOST = 2 ** 20;

/**
 * The grid as integers.
 * @throws DesapError `ERR_VALUE`
 */
export function gridOf(argument: string, given: GridThw): GridThw {
  if (!isArray(given) || given.length !== 3)
    throw invalid('ERR_VALUE', argument, given, '[frames, rows, columns] of patches, image_grid_thw of the image');
  const [frames, rows, columns] = entries<number>(argument, given);
  integer(`${argument}[0]`, frames, 1, MOST);
  for (const [i, side] of [rows, columns].entries())
    if (integer(`${argument}[${i + 1}]`, side, SIDE, MOST) % SIDE !== 0)
      throw invalid(
        'ERR_VALUE',
        `${argument}[${i + 1}]`,
        side,
        `a multiple of ${SIDE}: a token joins ${SIDE} x ${SIDE}`,
      );
  return [frames, rows, columns];
}

/**
 * The grid that K rows of an image have by themselves: the image's own where they are all, or that of the rectangle that they fill.
 *
 * @param indices which of the image's tokens they are, ascending; needed where they are not all
 * @throws DesapError `ERR_SHAPE` for other rows: the server would end, or place them wrongly
 */
export function gridOfRows(argument: string, count: number, grid: GridThw, indices?: Int32Array): GridThw {
  const [frames, height, width] = [grid[0], grid[1] / SIDE, grid[2] / SIDE];
  const all = frames * height * width;
  const wanted = `all ${all} rows of the grid [${grid}], or those of a rectangle, with their indices: the server ends on others`;
  if (indices === undefined) {
    if (count === all) return grid;
    throw mismatch('ERR_SHAPE', argument, `${count} rows`, wanted);
  }
  const tokens = int32Array(`${argument}.indices`, indices);
  if (tokens.length !== count)
    throw mismatch('ERR_SHAPE', `${argument}.indices`, `${tokens.length} indices`, `${count}, one for each row`);
  if (count === all && tokens.every((token, i) => token === i)) return grid;
  const [first, last] = [tokens[0], tokens[count - 1]];
  const [top, left] = [Math.floor(first / width), first % width];
  const [rows, columns] = [Math.floor(last / width) - top + 1, (last % width) - left + 1];
  const fills =
    frames === 1 &&
    first >= 0 &&
    last < all &&
    columns > 0 &&
    rows * columns === count &&
    tokens.every((token, i) => token === (top + Math.floor(i / columns)) * width + left + (i % columns));
  if (!fills) throw mismatch('ERR_SHAPE', argument, `${count} rows that fill no rectangle`, wanted);
  return [1, SIDE * rows, SIDE * columns];
}
