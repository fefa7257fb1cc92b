/**
 * LLaVA-NeXT's tiles ("anyres"): into which grid an image is cut, which patches are its own and not padding, and where they stand among the
 * image's tokens. The whole image is tile 0; the tiles of the grid follow, row by row.
 */
import { invalid } from '../errors.js';
import { plainLayout, type TokenLayout } from './layout.js';
import type { Tile } from './vision-model.js';

/** Height and width of an image, in pixels. */
export interface ImageSize {
  readonly height: number;
  readonly width: number;
}

/** Rows and columns of tiles, or of patches. */
export interface Grid {
  readonly rows: number;
  readonly columns: number;
}

/** What a model says of its tiles. */
export interface TileRule {
  /** Sizes in pixels that an image may be brought to, [height, width] each: `image_grid_pinpoints`. */
  readonly pinpoints: readonly (readonly [height: number, width: number])[];
  /** Side of a tile, in pixels. */
  readonly side: number;
}

/** What Hugging Face takes where a configuration has no sizes. */
export const PINPOINTS: TileRule['pinpoints'] = [
  [336, 672],
  [672, 336],
  [672, 672],
  [1008, 336],
  [336, 1008],
];

/**
 * `model`: padding is cut off and rows end in a newline, as the model was trained; `paper`: every tile has all of its patches and there are
 * no newlines, as pruning papers count.
 */
export type Anyres = (typeof ANYRES)[number];
export const ANYRES = ['model', 'paper'] as const;

/** Which newlines stay: those of rows with a kept patch, all, or none. */
export type Newline = (typeof NEWLINES)[number];
export const NEWLINES = ['kept-rows', 'all', 'none'] as const;

/**
 * The one of several sizes that an image is brought to: that in which most of its own pixels are left; of those the one with the least
 * padding; of those the first. With s = min(width' / width, height' / height): min(trunc(width s) trunc(height s), width height) pixels are left.
 */
export function bestSize({ height, width }: ImageSize, { pinpoints }: TileRule): ImageSize {
  let best: { size: ImageSize; left: number; waste: number } | null = null;
  for (const [tall, wide] of pinpoints) {
    const scale = Math.min(wide / width, tall / height);
    const left = Math.min(Math.trunc(width * scale) * Math.trunc(height * scale), width * height);
    const waste = tall * wide - left;
    if (best === null || left > best.left || (left === best.left && waste < best.waste))
      best = { size: { height: tall, width: wide }, left, waste };
  }
  if (best === null) throw invalid('ERR_VALUE', 'image_grid_pinpoints', pinpoints, 'at least one [height, width]');
  return best.size;
}

/** The grid of tiles that an image is cut into. */
export function gridOf(size: ImageSize, rule: TileRule): Grid {
  const { height, width } = bestSize(size, rule);
  return { rows: height / rule.side, columns: width / rule.side };
}

/** How many tiles an image has, itself included. */
export function tileCount({ rows, columns }: Grid): number {
  return 1 + rows * columns;
}

/** A window of the map of patches of all tiles. */
export interface Window extends Grid {
  readonly top: number;
  readonly left: number;
}

/**
 * The patches of a map that are the image's and not padding, as Hugging Face cuts it: the side on which the image is padded becomes
 * trunc(round(height (columns / width), 7)), and what is left is cut off on both ends alike.
 */
export function unpadded({ rows, columns }: Grid, { height, width }: ImageSize): Window {
  if (width / height > columns / rows) {
    const own = Math.trunc(Number((height * (columns / width)).toFixed(7)));
    const top = Math.floor((rows - own) / 2);
    return { top, left: 0, rows: rows - 2 * top, columns };
  }
  const own = Math.trunc(Number((width * (rows / height)).toFixed(7)));
  const left = Math.floor((columns - own) / 2);
  return { top: 0, left, rows, columns: columns - 2 * left };
}

/** Where the units of an image's tiles stand, and which patches they are. */
export interface AnyresLayout extends TokenLayout {
  /** For each tile the patches that are units, in the order of `places`. */
  readonly patches: readonly Int32Array[];
}

/** How a layout is made of an image. */
export interface AnyresOptions {
  /** Tiles, rows and columns, without the whole image. */
  readonly grid: Grid;
  /** Patches on each side of a tile. */
  readonly side: number;
  readonly anyres: Anyres;
  readonly newline: Newline;
}

/**
 * The tokens of an image: the patches of the whole image, then the map of all tiles row by row, where padding is cut off and each row ends
 * in a newline. Entry (r, c) of the map that is left is patch (R mod side, C mod side) of tile 1 + (R div side) columns + C div side, with
 * R = r + top and C = c + left.
 */
export function anyresLayout(size: ImageSize, { grid, side, anyres, newline }: AnyresOptions): AnyresLayout {
  const patches = side * side;
  const whole = Int32Array.from({ length: patches }, (_, patch) => patch);
  const tiles: Tile[] = Array.from({ length: tileCount(grid) }, () => ({ frame: 0, rows: side, columns: side }));
  if (anyres === 'paper') {
    const plain = plainLayout(
      tiles,
      tiles.map(() => patches),
    );
    return { ...plain, patches: tiles.map(() => whole) };
  }
  const { top, left, rows, columns } = unpadded({ rows: grid.rows * side, columns: grid.columns * side }, size);
  const stride = columns + 1;
  const units = tiles.map(() => ({ patches: [] as number[], places: [] as number[] }));
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++) {
      const [R, C] = [r + top, c + left];
      const tile = units[1 + Math.floor(R / side) * grid.columns + Math.floor(C / side)];
      tile.patches.push((R % side) * side + (C % side));
      tile.places.push(patches + r * stride + c);
    }
  const newlines = Int32Array.from({ length: rows }, (_, r) => patches + r * stride + columns);
  return {
    tokenCount: patches + rows * stride,
    tiles,
    patches: [whole, ...units.slice(1).map((tile) => Int32Array.from(tile.patches))],
    places: [whole, ...units.slice(1).map((tile) => Int32Array.from(tile.places))],
    markers: newlines,
    staying: (kept) => {
      if (newline !== 'kept-rows') return newline === 'all' ? newlines : new Int32Array();
      const seen = new Set<number>();
      for (const place of kept) if (place >= patches) seen.add(Math.floor((place - patches) / stride));
      return newlines.filter((_, row) => seen.has(row));
    },
  };
}
