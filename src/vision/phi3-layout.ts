/** Where the tokens of Phi-3.5-vision's crops stand. */
import type { Grid, Newline } from './anyres.js';
import type { TokenLayout } from './layout.js';

/**
 * The crops as one map of tokens, row by row with a separator behind each row; a separator; the whole image in the same way. Tiles: the
 * crops row by row, then the whole image.
 *
 * @param grid of crops
 * @param side tokens on each side of a crop
 * @param newline which separators of rows stay; that between crops and image goes with `none` only
 */
export function phi3Layout(grid: Grid, side: number, newline: Newline): TokenLayout {
  const [rows, columns] = [grid.rows * side, grid.columns * side];
  const [stride, between] = [columns + 1, rows * (columns + 1)];
  const whole = between + 1;
  const crop = (row: number, column: number) =>
    Int32Array.from({ length: side * side }, (_, unit) => {
      const [r, c] = [Math.floor(unit / side), unit % side];
      return (row * side + r) * stride + column * side + c;
    });
  const places = Array.from({ length: grid.rows * grid.columns }, (_, tile) =>
    crop(Math.floor(tile / grid.columns), tile % grid.columns),
  );
  places.push(Int32Array.from({ length: side * side }, (_, unit) => whole + unit + Math.floor(unit / side)));
  const ends = Array.from({ length: rows }, (_, row) => row * stride + columns);
  const endsOfWhole = Array.from({ length: side }, (_, row) => whole + row * (side + 1) + side);
  const endOf = (place: number) =>
    place < between
      ? Math.floor(place / stride) * stride + columns
      : whole + Math.floor((place - whole) / (side + 1)) * (side + 1) + side;
  const markers = Int32Array.from([...ends, between, ...endsOfWhole]);
  return {
    tokenCount: whole + side * (side + 1),
    tiles: places.map(() => ({ frame: 0, rows: side, columns: side })),
    places,
    markers,
    staying: (kept) => {
      if (newline !== 'kept-rows') return newline === 'all' ? markers : new Int32Array();
      const seen = new Set([...kept].map(endOf));
      return markers.filter((place) => place === between || seen.has(place));
    },
  };
}
