import { describe, expect, it } from 'vitest';
import { type AnyresOptions, anyresLayout, gridOf, tileCount, unpadded } from '../../src/vision/anyres.js';

/** LLaVA-NeXT-7B: tiles of 24 x 24 patches. */
const RULE = {
  side: 336,
  pinpoints: [
    [336, 672],
    [672, 336],
    [672, 672],
    [1008, 336],
    [336, 1008],
  ],
} as const;
const SIDE = 24;

function layoutOf(height: number, width: number, how: Partial<AnyresOptions> = {}) {
  const size = { height, width };
  const grid = gridOf(size, RULE);
  return { grid, ...anyresLayout(size, { grid, side: SIDE, anyres: 'model', newline: 'kept-rows', ...how }) };
}

describe('the tokens of an image in tiles', () => {
  // transformers 5.24: LlavaNextProcessor._get_number_of_features, select_best_resolution.
  it.each([
    [336, 336, [1, 2], [24, 24], [0, 12], 1176],
    [224, 224, [1, 2], [24, 24], [0, 12], 1176],
    [672, 672, [2, 2], [48, 48], [0, 0], 2928],
    [480, 640, [2, 2], [36, 48], [6, 0], 2340],
    [640, 480, [2, 2], [48, 36], [0, 6], 2352],
    [427, 640, [2, 2], [32, 48], [8, 0], 2144],
    [1080, 1920, [2, 2], [28, 48], [10, 0], 1948],
    [1920, 1080, [2, 2], [48, 28], [0, 10], 1968],
    [1000, 300, [3, 1], [72, 22], [0, 1], 2232],
    [300, 1000, [1, 3], [22, 72], [1, 0], 2182],
    [500, 333, [2, 1], [36, 24], [6, 0], 1476],
    [334, 500, [1, 2], [24, 36], [0, 6], 1464],
    [1024, 683, [2, 2], [48, 32], [0, 8], 2160],
    [100, 1000, [1, 3], [8, 72], [8, 0], 1160],
    // Here the original, which does not round to seven places, has 1224 and 1656.
    [176, 198, [1, 2], [24, 28], [0, 10], 1272],
    [1128, 235, [3, 1], [72, 16], [0, 4], 1800],
    // Nothing is left of the map, or nothing but newlines.
    [1, 10000, [1, 2], [0, 48], [12, 0], 576],
    [10000, 1, [1, 2], [24, 0], [0, 24], 600],
    [1, 1, [1, 2], [24, 24], [0, 12], 1176],
  ])('are those of Hugging Face: %i x %i', (height, width, tiles, left, corner, tokens) => {
    const { grid, tokenCount, ...layout } = layoutOf(height, width);
    expect([grid.rows, grid.columns]).toEqual(tiles);
    const window = unpadded({ rows: SIDE * grid.rows, columns: SIDE * grid.columns }, { height, width });
    expect([window.rows, window.columns]).toEqual(left);
    expect([window.top, window.left]).toEqual(corner);
    expect(tokenCount).toBe(tokens);
    expect(layout.tiles).toHaveLength(tileCount(grid));
    const places = [...layout.places.flatMap((own) => [...own]), ...layout.markers].sort((a, b) => a - b);
    expect(places).toEqual(Array.from({ length: tokens }, (_, place) => place));
  });

  it('stand where packing the map of all tiles puts them', () => {
    const [height, width] = [480, 640];
    const { grid, places, patches, markers } = layoutOf(height, width);
    // The map with the tile and patch of each entry, cut and read row by row.
    const [rows, columns] = [grid.rows * SIDE, grid.columns * SIDE];
    const expected: string[] = Array.from({ length: SIDE * SIDE }, (_, patch) => `0 ${patch}`);
    for (let R = 6; R < rows - 6; R++) {
      for (let C = 0; C < columns; C++) {
        const tile = 1 + Math.floor(R / SIDE) * grid.columns + Math.floor(C / SIDE);
        expected.push(`${tile} ${(R % SIDE) * SIDE + (C % SIDE)}`);
      }
      expected.push('newline');
    }
    const got: string[] = [];
    places.forEach((own, tile) => {
      own.forEach((place, i) => {
        got[place] = `${tile} ${patches[tile][i]}`;
      });
    });
    for (const place of markers) got[place] = 'newline';
    expect(got).toEqual(expected);
  });

  it('keep the newlines that the policy says', () => {
    const newlines = (newline: 'kept-rows' | 'all' | 'none', ...kept: number[]) => [
      ...layoutOf(480, 640, { newline }).staying(Int32Array.from(kept)),
    ];
    // Rows of 48 patches and a newline, behind 576 of the whole image.
    expect(newlines('kept-rows', 0, 575)).toEqual([]);
    expect(newlines('kept-rows', 3, 576, 577, 576 + 2 * 49 + 47)).toEqual([576 + 48, 576 + 2 * 49 + 48]);
    expect(newlines('none', 576)).toEqual([]);
    expect(newlines('all')).toHaveLength(36);
  });

  it('are all patches of all tiles, as papers count', () => {
    const { tokenCount, markers, places, patches } = layoutOf(480, 640, { anyres: 'paper' });
    expect(tokenCount).toBe(2880);
    expect(markers).toHaveLength(0);
    expect(patches.map((own) => own.length)).toEqual([576, 576, 576, 576, 576]);
    expect(places[2][3]).toBe(2 * 576 + 3);
  });
});
