/** Tiles that are left out, on the trained model in tiles: what is kept of the others is what is kept of them without the option. */
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  AnyresImageProcessor,
  type AnyresImages,
  LlavaNextVision,
  openVisionModel,
  type PrunedFeatures,
  type TileOptions,
} from '../../src/vision/index.js';
import { TILE_RULES, tileChoice, tilesTaken } from '../../src/vision/tile-options.js';
import { tileScores, tilesOfView } from '../../src/vision/tile-rules.js';

const FOLDER = 'models/tiny-llava-next';
const ENCODER = join(FOLDER, 'onnx/vision_encoder.onnx');
const clip = 'models/tiny-clip';
const QUESTION = 'what color is the circle ?';
/** [[tile, patch] of each token that is no newline], for two by two tiles of 144 behind the whole image. */
const tileOf = (place: number) => {
  if (place < 144) return 0;
  const [row, column] = [Math.floor((place - 144) / 25), (place - 144) % 25];
  return column === 24 ? null : 1 + Math.floor(row / 12) * 2 + Math.floor(column / 12);
};
const rowOf = (place: number) => Math.floor((place - 144) / 25);

let inputs: AnyresImages;
let plain: LlavaNextVision;
beforeAll(async () => {
  inputs = await (await AnyresImageProcessor.open(FOLDER)).process('models/eval-next/images/000.png');
  plain = await LlavaNextVision.open(ENCODER, { clip });
}, 60_000);
afterAll(() => plain.dispose());

const open = (tiles: TileOptions, more: object = {}) => LlavaNextVision.open(ENCODER, { clip, tiles, ...more });

/** Places of what is left of a pruning when only these tiles are there. */
function ofTiles({ indices }: PrunedFeatures, taken: readonly number[]): number[] {
  const stays = (place: number) => [0, ...taken.map((tile) => tile + 1)].includes(tileOf(place) as number);
  const rows = new Set([...indices].filter((place) => place >= 144 && stays(place)).map(rowOf));
  return [...indices].filter((place) => (tileOf(place) === null ? rows.has(rowOf(place)) : stays(place)));
}

it.each(TILE_RULES)(
  'keeps of the tiles that %s takes what it keeps of them without the option',
  async (by) => {
    await using vision = await open({ keep: 2, by });
    const [image] = await vision.encode(inputs);
    const [whole] = await plain.encode(inputs);
    for (const how of [{ keep: 16, preset: 'best' }, { keepRatio: 1 }, { keep: 9, method: 'divprune' }] as const) {
      const got = await image.prune(QUESTION, how);
      const want = await whole.prune(QUESTION, how);
      const taken = [...got.looked!.taken];
      expect(taken).toHaveLength(2);
      expect(got.looked!.by).toBe(by);
      const places = ofTiles(want, taken);
      expect([...got.indices]).toEqual(places);
      expect(got.assignment).toHaveLength(744);
      const width = got.features.dims[2];
      const rows = places.flatMap((place) => {
        const row = want.indices.indexOf(place);
        return [...(want.features.data as Float32Array).subarray(row * width, (row + 1) * width)];
      });
      const off = rows.map((value, i) => Math.abs(value - (got.features.data as Float32Array)[i]));
      expect(Math.max(...off)).toBeLessThan(1e-4);
    }
    expect((await image.all()).data).toEqual((await whole.all()).data);
    whole.dispose();
    image.dispose();
  },
  60_000,
);

it('gives the same bits where all tiles are taken', async () => {
  const [whole] = await plain.encode(inputs);
  const want = await whole.prune(QUESTION, { keep: 16 });
  for (const tiles of [{ keep: 4 }, { keep: 9 }, { keep: 'auto', mass: 1 }] as const) {
    await using vision = await open(tiles);
    const [image] = await vision.encode(inputs);
    const { looked, features, indices, assignment } = await image.prune(QUESTION, { keep: 16 });
    expect(looked === undefined).toBe(tiles.keep !== 'auto');
    expect([features.data, indices, assignment]).toEqual([want.features.data, want.indices, want.assignment]);
    image.dispose();
  }
  whole.dispose();
}, 60_000);

it('encodes a tile once, for questions one after the other and together', async () => {
  await using vision = await open({ keep: 1, by: 'kk' });
  const [image] = await vision.encode(inputs);
  const asked = [QUESTION, 'where is the green thing ?', QUESTION];
  const together = await Promise.all(asked.map((question) => image.prune(question, { keep: 4 })));
  for (const [i, question] of asked.entries()) {
    const { features, looked } = await image.prune(question, { keep: 4 });
    expect([features.data, looked]).toEqual([together[i].features.data, together[i].looked]);
  }
  const [pruned] = await vision.pruneImages([image], [null], [{ keep: 4, taskShare: 0 }]);
  expect(pruned.looked!.by).toBe('saliency');
  image.dispose();
  await expect(image.prune(QUESTION, { keep: 4 })).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
}, 60_000);

it('lets the newlines of rows without any tile go, where all others stay', async () => {
  await using vision = await open({ keep: 1, by: 'saliency' }, { newline: 'all' });
  const [image] = await vision.encode(inputs);
  const { indices, looked } = await image.prune(QUESTION, { keep: 1 });
  const newlines = [...indices].filter((place) => tileOf(place) === null).map(rowOf);
  const first = 12 * Math.floor(looked!.taken[0] / 2);
  expect(newlines).toEqual(Array.from({ length: 12 }, (_, row) => first + row));
  image.dispose();
}, 60_000);

it('refuses what it cannot do, and says what is possible', async () => {
  const cases: [unknown, RegExp][] = [
    [{ keep: 0 }, /^tiles\.keep: got 0, wanted a share/],
    [{ keep: 1.5 }, /^tiles\.keep: got 1\.5/],
    [{ keep: 1, by: 'luck' }, /^tiles\.by: got 'luck', wanted 'block'/],
    [{ keep: 1, mass: 0.5 }, /^tiles\.mass: got 0\.5 with a number of tiles/],
    [{ keep: 'auto', mass: 2 }, /^tiles\.mass: got 2/],
    [{ keep: 1, count: 2 }, /^tiles: got the unknown option 'count'/],
  ];
  for (const [tiles, message] of cases) expect(() => tileChoice(tiles as TileOptions, TILE_RULES)).toThrow(message);
  const llava = openVisionModel('models/tiny-llava', { clip, tiles: { keep: 1 } });
  await expect(llava).rejects.toMatchObject({ code: 'ERR_VALUE', message: /^tiles: got .*LLaVA-NeXT, Idefics3/ });
  const idefics = openVisionModel('test/fixtures/families/idefics3', { tiles: { keep: 1, by: 'block' } });
  await expect(idefics).rejects.toMatchObject({ code: 'ERR_VALUE', message: /^tiles\.by: got 'block'/ });
  const flat = openVisionModel('test/fixtures/families/gemma3', { tiles: { keep: 1 } });
  await expect(flat).rejects.toMatchObject({ code: 'ERR_VALUE', message: /^tiles: got/ });
}, 60_000);

it('takes the highest scores, equal ones from the first tile on, and the fewest that make up a mass', () => {
  const scores = Float32Array.of(0.5, 0.1, 0.3, 0.5);
  const taken = (keep: TileOptions['keep'], mass = 0.9) => [...tilesTaken({ keep, mass }, scores)];
  expect([taken(1), taken(2), taken(3), taken(0.5), taken(0.01)]).toEqual([[0], [0, 3], [0, 2, 3], [0, 3], [0]]);
  // Above the lowest: 0.4, 0, 0.2, 0.4.
  expect([taken('auto', 0.39), taken('auto', 0.79), taken('auto', 0.9)]).toEqual([[0], [0, 3], [0, 2, 3]]);
  expect([...tilesTaken({ keep: 'auto', mass: 0.5 }, new Float32Array(3))]).toEqual([0, 1, 2]);
});

it('scores tiles by their parts of the whole view', () => {
  const tileOfUnits = tilesOfView({ rows: 2, columns: 4 }, { rows: 1, columns: 2 });
  expect([...tileOfUnits]).toEqual([0, 0, 1, 1, 0, 0, 1, 1]);
  const units = { data: Float32Array.of(1, 0, 0.6, 0.8, 0, 1, 0.8, 0.6, 0, 1, 0, 1, 1, 0, 0.6, 0.8), width: 2 };
  const view = {
    ...{ tileOf: tileOfUnits, tiles: 2, saliency: Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8) },
    asked: { units, text: { data: Float32Array.of(1, 0, 1, 0), width: 2 } },
  };
  const close = (got: Float32Array, want: number[]) => {
    for (const [i, value] of want.entries()) expect(got[i]).toBeCloseTo(value, 6);
  };
  close(tileScores('kk', view), [0.8, 0.9]);
  close(tileScores('contrast', view), [1 - 0.4, 1 - 0.6]);
  close(tileScores('saliency', view), [3.5, 5.5]);
  close(tileScores('words', view), [0.8, 0.9]);
});
