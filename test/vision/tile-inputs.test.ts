/** What Idefics3 and LFM2-VL make of their inputs, without an encoder. */
import { describe, expect, it } from 'vitest';
import type { BlockFamily, EncoderFacts, EncoderRun } from '../../src/vision/block-family.js';
import { IDEFICS3 } from '../../src/vision/idefics3.js';
import { LFM2 } from '../../src/vision/lfm2.js';
import { tileRuns } from '../../src/vision/tile-inputs.js';
import { INPUT_NAMES } from '../../src/vision/vision-model.js';

const FLOAT = 1;
const INT64 = 7;
const BOOL = 9;

function encoder(...inputs: EncoderFacts['inputs']): EncoderFacts {
  return { config: {}, inputs, several: async () => true, rowsAtOnce: 1024 };
}

const filled = (dims: number[], value = (i: number) => i + 1) => ({
  data: Float32Array.from({ length: dims.reduce((size, extent) => size * extent, 1) }, (_, i) => value(i)),
  dims,
});
const flags = (dims: number[], value: (i: number) => boolean) => ({
  type: 'bool',
  data: Uint8Array.from({ length: dims.reduce((size, extent) => size * extent, 1) }, (_, i) => Number(value(i))),
  dims,
});
const int64 = (dims: number[], ...values: number[]) => ({
  type: 'int64',
  data: BigInt64Array.from(values, BigInt),
  dims,
});

const read = (family: BlockFamily, facts: EncoderFacts, inputs: object) =>
  family.read(inputs, INPUT_NAMES, facts) as readonly EncoderRun[];

it('runs tiles of whole images together, twenty at most unless one image has more', () => {
  const runs = (...counts: number[]) =>
    tileRuns(counts.flatMap((count, image) => new Array<number>(count).fill(image)));
  expect(runs(5)).toEqual([[0, 5]]);
  expect(runs(13, 7, 1)).toEqual([
    [0, 20],
    [20, 21],
  ]);
  expect(runs(1, 40, 1, 1)).toEqual([
    [0, 1],
    [1, 41],
    [41, 43],
  ]);
});

describe('Idefics3', () => {
  const facts = encoder(
    { name: 'pixels', type: FLOAT, dims: ['b', 't', 3, 'h', 'w'] },
    { name: 'seen', type: BOOL, dims: ['b', 't', 'h', 'w'] },
  );
  const SIZE = 3 * 4 * 6;

  it('feeds the tiles that are there, one image for each row of the batch', () => {
    // Rows of two, none and three tiles.
    const there = [1, 1, 0, 0, 0, 0, 1, 1, 1];
    const pixelValues = filled([3, 3, 3, 4, 6], (i) => there[Math.floor(i / SIZE)] * (i + 1));
    const pixelAttentionMask = flags([3, 3, 4, 6], (i) => there[Math.floor(i / 24)] === 1);
    for (const inputs of [{ pixelValues }, { pixelValues, pixelAttentionMask }]) {
      const [run, ...others] = read(IDEFICS3, facts, inputs);
      expect(others).toEqual([]);
      const { pixels, seen } = run.feeds;
      expect(pixels.dims).toEqual([1, 5, 3, 4, 6]);
      const kept = pixelValues.data.filter((value) => value !== 0);
      expect(pixels.data).toEqual(kept);
      expect(seen).toEqual({ type: 'bool', data: new Uint8Array(5 * 24).fill(1), dims: [1, 5, 4, 6] });
      // 24 patches of one pixel, two by two to a token.
      const tiles = run.tiles([5, 24, 8], [5, 6, 16]);
      expect(tiles.map(({ image }) => image)).toEqual([0, 0, 1, 1, 1]);
      expect(tiles[3]).toEqual({
        ...{ image: 1, medium: 'image', frame: 0, rows: 2, columns: 3 },
        ...{ firstRow: 72, patches: 24, firstToken: 18, tokens: 6 },
        unit: Int32Array.from([0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 3, 3, 4, 4, 5, 5]),
      });
    }
  });

  it('takes counts of tiles, and files without batch axis or mask', () => {
    const pixelValues = filled([1, 5, 3, 4, 4]);
    const flat = encoder({ name: 'x', type: FLOAT, dims: ['t', 3, 4, 4] });
    const [run] = read(IDEFICS3, flat, { pixelValues, tileCounts: [2, 1, 2] });
    expect(run.feeds).toEqual({ x: { type: 'float32', data: pixelValues.data, dims: [5, 3, 4, 4] } });
    const tiles = run.tiles([5, 16, 8], [5, 16, 16]);
    expect(tiles.map(({ image }) => image)).toEqual([0, 0, 1, 2, 2]);
    expect(tiles[0].unit).toBeNull();
  });

  it('feeds images of many tiles in several runs', () => {
    const pixelValues = filled([3, 12, 3, 4, 4]);
    const runs = read(IDEFICS3, facts, { pixelValues });
    expect(runs.map(({ feeds }) => feeds.pixels.dims[1])).toEqual([12, 12, 12]);
    expect(runs.flatMap(({ feeds }) => [...feeds.pixels.data])).toEqual([...pixelValues.data]);
    const tiles = runs[2].tiles([12, 16, 8], [12, 4, 16]);
    expect(tiles[1]).toMatchObject({ image: 2, firstRow: 16, firstToken: 4 });
  });

  const pixelValues = filled([1, 2, 3, 4, 6]);
  const half = filled([1, 2, 3, 4, 6], (i) => (i < SIZE ? 1 : 0));
  it.each<[string, object, string, RegExp]>([
    ['nothing', {}, 'ERR_DTYPE', /^pixelValues: got undefined/],
    ['another rank', { pixelValues: filled([2, 3, 4, 6]) }, 'ERR_SHAPE', /^pixelValues.dims: got \[2, 3, 4, 6\]/],
    ['no tiles', { pixelValues: filled([1, 0, 3, 4, 6]) }, 'ERR_SHAPE', /^pixelValues.dims: got \[1, 0, 3, 4, 6\]/],
    ['zeros', { pixelValues: filled([1, 2, 3, 4, 6], () => 0) }, 'ERR_VALUE', /^pixelValues: got zeros only/],
    [
      'zeros that are shown',
      { pixelValues: half, pixelAttentionMask: flags([1, 2, 4, 6], () => true) },
      'ERR_VALUE',
      /^pixelValues: got tile 1 of row 0 of zeros, which is not hidden/,
    ],
    [
      'hidden pixels',
      { pixelValues, pixelAttentionMask: flags([1, 2, 4, 6], (i) => i < 24) },
      'ERR_VALUE',
      /^pixelAttentionMask: got tile 1 of row 0 hidden, with pixels, wanted zeros/,
    ],
    [
      'a part of a tile',
      { pixelValues, pixelAttentionMask: flags([1, 2, 4, 6], (i) => i < 30) },
      'ERR_VALUE',
      /^pixelAttentionMask: got 6 of 24 pixels of tile 1 of row 0, wanted all of a tile, or none/,
    ],
    [
      'a mask of another size',
      { pixelValues, pixelAttentionMask: flags([1, 2, 6, 4], () => true) },
      'ERR_SHAPE',
      /^pixelAttentionMask.dims: got \[1, 2, 6, 4\], wanted \[1, 2, 4, 6\]/,
    ],
    ['floats as mask', { pixelValues, pixelAttentionMask: half }, 'ERR_DTYPE', /^pixelAttentionMask: got/],
    ['too few tiles', { pixelValues, tileCounts: [1] }, 'ERR_VALUE', /^tileCounts: got 1 tiles \(1\), wanted 2, those/],
    ['an image of none', { pixelValues, tileCounts: [2, 0] }, 'ERR_VALUE', /^tileCounts\[1\]: got 0/],
    ['a count alone', { pixelValues, tileCounts: 2 }, 'ERR_VALUE', /^tileCounts: got 2/],
    ['a grid', { pixelValues, spatialShapes: int64([1, 2], 1, 2) }, 'ERR_VALUE', /^inputs: got the unknown option/],
  ])('refuses %s by name', (_, inputs, code, message) => {
    expect(() => read(IDEFICS3, facts, inputs)).toThrowError(
      expect.objectContaining({ name: 'DesapError', code, message: expect.stringMatching(message) }),
    );
  });

  it('refuses an encoder that drops tiles, or whose tokens are no squares of patches', () => {
    const [run] = read(IDEFICS3, facts, { pixelValues });
    expect(() => run.tiles([1, 24, 8], [1, 6, 16])).toThrowError(/^pixelValues: got 2 tiles, and states of 1/);
    expect(() => run.tiles([2, 24, 8], [2, 8, 16])).toThrowError(/24 patches and 8 visual tokens for a tile of 4 x 6/);
    expect(() => run.tiles([2, 25, 8], [2, 25, 16])).toThrowError(/25 patches/);
  });
});

describe('LFM2-VL', () => {
  const facts = encoder(
    { name: 'shapes', type: INT64, dims: ['t', 2] },
    { name: 'pixels', type: FLOAT, dims: ['t', 'p', 12] },
    { name: 'mask', type: INT64, dims: ['t', 'p'] },
  );
  const pixelValues = filled([3, 16, 12]);
  const grids = [4, 4, 2, 6, 4, 2];
  const spatialShapes = int64([3, 2], ...grids);
  const shown = [16, 12, 8].flatMap((count) => Array.from({ length: 16 }, (_, i) => Number(i < count)));

  it('feeds grids and masks as the file takes them, with units on grids that are no squares', () => {
    for (const mask of [undefined, int64([3, 16], ...shown), flags([3, 16], (i) => shown[i] === 1)]) {
      const inputs = { pixelValues, spatialShapes, pixelAttentionMask: mask, tileCounts: [2, 1] };
      const [run, ...others] = read(LFM2, facts, inputs);
      expect(others).toEqual([]);
      expect(run.feeds).toEqual({
        pixels: { type: 'float32', ...pixelValues },
        shapes: spatialShapes,
        mask: int64([3, 16], ...shown),
      });
      const tiles = run.tiles([3, 16, 8], [9, 32]);
      expect(tiles.map(({ image }) => image)).toEqual([0, 0, 1]);
      expect(tiles[1]).toEqual({
        ...{ image: 0, medium: 'image', frame: 0, rows: 1, columns: 3 },
        ...{ firstRow: 16, patches: 12, firstToken: 4, tokens: 3 },
        unit: Int32Array.from([0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]),
      });
      expect(tiles[2]).toMatchObject({ rows: 2, columns: 1, firstRow: 32, patches: 8, firstToken: 7, tokens: 2 });
    }
  });

  it('feeds images of many tiles in several runs', () => {
    const many = { pixelValues: filled([24, 4, 12]), spatialShapes: int64([24, 2], ...new Array(48).fill(2)) };
    const runs = read(LFM2, facts, { ...many, tileCounts: [12, 12] });
    expect(runs.map(({ feeds }) => feeds.shapes.dims[0])).toEqual([12, 12]);
    expect(runs.flatMap(({ feeds }) => [...feeds.pixels.data])).toEqual([...many.pixelValues.data]);
    expect(runs[1].tiles([12, 4, 8], [12, 32])[1]).toMatchObject({ image: 1, firstRow: 4, firstToken: 1 });
  });

  it('takes all tiles for one image where nothing else is said', () => {
    const [run] = read(LFM2, facts, { pixelValues, spatialShapes });
    expect(run.tiles([3, 16, 8], [9, 32]).map(({ image }) => image)).toEqual([0, 0, 0]);
  });

  it.each<[string, object, string, RegExp]>([
    ['nothing', {}, 'ERR_DTYPE', /^pixelValues: got undefined/],
    ['images', { pixelValues: filled([1, 3, 4, 4]) }, 'ERR_SHAPE', /^pixelValues.dims: got \[1, 3, 4, 4\]/],
    ['no grids', { pixelValues }, 'ERR_DTYPE', /^spatialShapes: got undefined, wanted rows and columns/],
    [
      'grids of other tiles',
      { pixelValues, spatialShapes: int64([2, 2], 4, 4, 4, 4) },
      'ERR_SHAPE',
      /^spatialShapes.dims: got \[2, 2\], wanted \[3, 2\]/,
    ],
    [
      'a grid that is not joined whole',
      { pixelValues, spatialShapes: int64([3, 2], 4, 4, 3, 4, 2, 2) },
      'ERR_VALUE',
      /^spatialShapes: got \[3, 4\] for tile 1, wanted rows and columns of patches that are multiples of 2/,
    ],
    [
      'a grid beyond the patches',
      { pixelValues, spatialShapes: int64([3, 2], 4, 4, 4, 6, 2, 2) },
      'ERR_VALUE',
      /^spatialShapes: got \[4, 6\] for tile 1, wanted .* 16 patches at most/,
    ],
    ['an empty grid', { pixelValues, spatialShapes: int64([3, 2], 4, 4, 0, 6, 2, 2) }, 'ERR_VALUE', /^spatialShapes/],
    [
      'a mask that shows padding',
      { pixelValues, spatialShapes, pixelAttentionMask: int64([3, 16], ...new Array(48).fill(1)) },
      'ERR_VALUE',
      /^pixelAttentionMask: got 1 for patch 12 of tile 1, wanted the first 12 patches .* as spatialShapes says/,
    ],
    [
      'a mask that hides patches',
      { pixelValues, spatialShapes, pixelAttentionMask: int64([3, 16], ...shown.map((flag, i) => (i ? flag : 0))) },
      'ERR_VALUE',
      /^pixelAttentionMask: got 0 for patch 0 of tile 0/,
    ],
    [
      'a mask of other tiles',
      { pixelValues, spatialShapes, pixelAttentionMask: int64([2, 16], ...shown.slice(16)) },
      'ERR_SHAPE',
      /^pixelAttentionMask.dims: got \[2, 16\], wanted \[3, 16\]/,
    ],
    ['too many tiles', { pixelValues, spatialShapes, tileCounts: [2, 2] }, 'ERR_VALUE', /^tileCounts: got 4 tiles/],
  ])('refuses %s by name', (_, inputs, code, message) => {
    expect(() => read(LFM2, facts, inputs)).toThrowError(
      expect.objectContaining({ name: 'DesapError', code, message: expect.stringMatching(message) }),
    );
  });

  it('refuses states and features of other tiles', () => {
    const [run] = read(LFM2, facts, { pixelValues, spatialShapes });
    expect(() => run.tiles([3, 16, 8], [10, 32])).toThrowError(/wanted 48 rows of states and 9 of features/);
    expect(() => run.tiles([3, 12, 8], [9, 32])).toThrowError(/wanted 48 rows of states and 9 of features/);
  });
});
