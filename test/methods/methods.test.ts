/** Methods by themselves: options, ties, padding, and what no golden case has. */
import { afterAll, describe, expect, it } from 'vitest';
import { openBackend } from '../../src/index.js';
import { chooserOf, METHOD_NAMES, type RivalName, tapsOf } from '../../src/methods/index.js';
import type { MethodImage, TapName } from '../../src/methods/method.js';
import { normal } from '../support.js';

const backend = openBackend({ device: 'reference' });
afterAll(() => backend.dispose());

const [D, F, H, E] = [16, 12, 4, 8];
const SIDE = 6;
const P = SIDE * SIDE;

const layer = (seed: number, rows = D) => ({
  weight: normal(seed, rows * D, 2 / Math.sqrt(D)),
  bias: normal(seed + 50, rows, 0.1),
});
const norm = (seed: number) => ({
  weight: normal(seed, D, 0.1).map((one) => 1 + one),
  bias: normal(seed + 50, D, 0.1),
});
const matrix = (seed: number, rows: number, cols: number) => ({ data: normal(seed, rows * cols), rows, cols });

/** An image of random rows. */
function imageOf(given: Partial<MethodImage> & { seed?: number } = {}): MethodImage {
  const { seed = 1, ...own } = given;
  const hidden = matrix(seed, P + 1, D);
  const blocks: readonly TapName[] = ['first', 'local', 'penultimate', 'last'];
  const states = { data: hidden.data.subarray(D), rows: P, cols: D };
  return {
    ...{ backend, grid: { rows: SIDE, columns: SIDE }, classToken: true, patches: null },
    states: () => states,
    tap: async (name) => {
      const b = 1000 * (1 + blocks.indexOf(name));
      const weights = { heads: H, epsilon: 1e-5, ln1: norm(b), q: layer(b + 1), k: layer(b + 2), v: layer(b + 3) };
      return { hidden: name === 'last' ? hidden : matrix(seed + b, P + 1, D), weights };
    },
    features: async () => matrix(seed + 7, P, F),
    timed: async (_, work) => work(),
    readOut: async () => ({ postNorm: norm(8), epsilon: 1e-5, visualProjection: matrix(9, E, D) }),
    text: async () => matrix(seed + 10, 1, E),
    taskMap: async () => normal(seed + 11, P),
    ...own,
  };
}

const RIVALS = METHOD_NAMES.filter((name): name is RivalName => name !== 'desap');

describe.each(RIVALS)('%s', (name) => {
  it.each([1, 2, 9, 35, 36])('keeps exactly %d', async (keep) => {
    const { kept, source, assignment, counts, order, tokens } = await chooserOf(name).choose(imageOf(), keep);
    expect(kept).toHaveLength(keep);
    expect([...new Set(kept)].sort((a, b) => a - b)).toEqual([...kept]);
    expect([source.length, counts.length, tokens.rows, assignment.length]).toEqual([keep, keep, keep, P]);
    expect([...order].sort((a, b) => a - b)).toEqual([...kept.keys()]);
    kept.forEach((patch, k) => {
      expect(assignment[patch]).toBe(k);
    });
    expect(counts.reduce((sum, count) => sum + count, 0)).toBe(assignment.filter((k) => k >= 0).length);
    expect(tokens.data.every(Number.isFinite)).toBe(true);
  });

  it('gives the same twice', async () => {
    const [a, b] = [await chooserOf(name).choose(imageOf(), 9), await chooserOf(name).choose(imageOf(), 9)];
    expect(a).toEqual(b);
  });

  it('says the taps that it reads', async () => {
    const read = new Set<TapName>();
    const image = imageOf();
    const tap = (which: TapName) => {
      read.add(which);
      return image.tap(which);
    };
    await chooserOf(name).choose({ ...image, tap }, 9);
    expect([...read].sort()).toEqual([...chooserOf(name).taps].sort());
  });

  it('refuses an option that it does not have', () => {
    expect(() => chooserOf(name, { layers: 3 })).toThrow(
      /^methodOptions: got the unknown option 'layers', wanted one of/,
    );
    expect(() => chooserOf(name, 3 as never)).toThrow(/^methodOptions: got 3, wanted an object of options/);
  });
});

it.each<[RivalName, object, RegExp]>([
  ['random', { seed: -1 }, /^seed: got -1, wanted an integer from 0/],
  ['random', { merging: 'yes' }, /^merging: got 'yes', wanted true or false/],
  ['fastervlm', { tap: 'first' }, /^tap: got 'first', wanted 'penultimate' | 'last'/],
  ['visionzip', { contextualShare: 2 }, /^contextualShare: got 2/],
  ['visionzip', { combine: 'max' }, /^combine: got 'max'/],
  ['prumerge', { attentionShare: Number.NaN }, /^attentionShare: got NaN/],
  ['prumerge', { neighbours: 0 }, /^neighbours: got 0/],
  ['prumerge', { aggregate: 1 }, /^aggregate: got 1/],
  ['prumerge', { adaptive: 'no' }, /^adaptive: got 'no'/],
  ['hired', { alpha: 1.5 }, /^alpha: got 1.5/],
  ['hired', { allocation: 'rows' }, /^allocation: got 'rows', wanted 'spatial' | 'bands'/],
  ['holov', { runs: 0 }, /^runs: got 0/],
  ['vscan', { localShare: -1 }, /^localShare: got -1/],
  ['vscan', { windows: 2.5 }, /^windows: got 2.5/],
  ['vscan', { mergeSpace: 'keys' }, /^mergeSpace: got 'keys'/],
  ['cdpruner', { relevance: 'other' }, /^relevance: got 'other'/],
  ['cdpruner', { theta: 1 }, /^theta: got 1/],
  ['cdpruner', { blend: 2 }, /^blend: got 2/],
  ['cdpruner', { blend: 0.5, theta: 0.5 }, /^theta: got blend beside it, wanted one of the two/],
  ['cdpruner', { split: 3 }, /^split: got 3, wanted 1 or 2/],
  ['trim', { relevance: null }, /^relevance: got null/],
  ['trim', { aggregate: 'x' }, /^aggregate: got 'x'/],
  ['trim', { adaptive: 2 }, /^adaptive: got 2/],
  ['dart', { pivots: 0 }, /^pivots: got 0/],
  ['dart', { textPivots: -1 }, /^textPivots: got -1/],
  ['dart', { textEmbeddings: 3 }, /^textEmbeddings: got 3/],
  ['tome', { tap: 'local' }, /^tap: got 'local'/],
  ['flowcut', { taps: [] }, /^taps: got \[\], wanted a list of 'first'/],
  ['flowcut', { taps: ['second'] }, /^taps: got \['second'\]/],
])('%s refuses %j', (name, options, message) => {
  expect(() => chooserOf(name, options)).toThrow(message);
});

it('names its methods', () => {
  expect(METHOD_NAMES).toHaveLength(15);
  expect(() => chooserOf('fastv' as never)).toThrow(/^method: got 'fastv', wanted 'desap' \| 'random'/);
  expect(() => chooserOf('toString' as never)).toThrow(/^method: got 'toString'/);
  expect(tapsOf('desap')).toEqual([]);
  expect(tapsOf('hired')).toEqual(['penultimate', 'first']);
  expect(tapsOf('flowcut', { taps: ['local', 'first'] })).toEqual(['first', 'local']);
});

describe('padding', () => {
  /** The window of the first four rows and columns. */
  const patches = Int32Array.from({ length: 16 }, (_, i) => Math.floor(i / 4) * SIDE + (i % 4));
  const states = { data: normal(3, 16 * D), rows: 16, cols: D };
  const own = { patches, grid: { rows: 4, columns: 4 }, states: () => states, features: async () => matrix(4, 16, F) };
  const window = { ...own, taskMap: async () => normal(5, 16) };

  it.each(RIVALS)('%s chooses among the patches that are none', async (name) => {
    const { kept, assignment } = await chooserOf(name).choose(imageOf(window), 9);
    expect([kept.length, assignment.length]).toEqual([9, 16]);
    expect(Math.max(...kept)).toBeLessThan(16);
  });

  it('has its part in the attention of the others', async () => {
    const whole = (await chooserOf('fastervlm').choose(imageOf(), 1)).scores.saliency;
    const part = (await chooserOf('fastervlm').choose(imageOf(window), 1)).scores.saliency;
    expect([...part]).toEqual([...patches].map((patch) => whole[patch]));
  });
});

describe('options', () => {
  it('random draws by mulberry32: other patches for another seed', async () => {
    const kept = async (seed?: number) => [...(await chooserOf('random', { seed }).choose(imageOf(), 3)).kept];
    // u = .266, .0003, ..: places 9, 1 + 0, ..
    expect(await kept()).toEqual(await kept(0));
    expect(await kept()).toContain(9);
    expect(await kept(1)).not.toEqual(await kept(0));
  });

  it.each(['random', 'uniform', 'fastervlm', 'hired', 'holov', 'cdpruner', 'divprune', 'dart', 'flowcut'] as const)(
    '%s merges the others',
    async (name) => {
      const plain = await chooserOf(name).choose(imageOf(), 9);
      const merged = await chooserOf(name, { merging: true }).choose(imageOf(), 9);
      expect(merged.kept).toEqual(plain.kept);
      expect([...merged.counts].reduce((sum, count) => sum + count)).toBe(P);
      expect(merged.assignment).not.toContain(-1);
    },
  );

  it('adaptive methods say themselves how many they keep', async () => {
    for (const name of ['prumerge', 'trim'] as const) {
      const chooser = chooserOf(name, { adaptive: true });
      expect(chooser.isAdaptive).toBe(true);
      const { kept } = await chooser.choose(imageOf(), P);
      expect(kept.length).toBeGreaterThan(0);
      expect(kept.length).toBeLessThan(P);
    }
  });

  it('cdpruner chooses from both halves apart', async () => {
    const { kept, picked } = await chooserOf('cdpruner', { blend: 0.5, split: 2, relevance: 'positive' }).choose(
      imageOf(),
      9,
    );
    expect([...kept].filter((patch) => patch < P / 2)).toHaveLength(4);
    expect([...picked!].slice(0, 4).every((patch) => patch < P / 2)).toBe(true);
  });

  it('cdpruner takes an image on which every patch is as relevant', async () => {
    const even = imageOf({ taskMap: async () => new Float32Array(P).fill(0.3) });
    const { picked } = await chooserOf('cdpruner', { relevance: 'decoupled' }).choose(even, 9);
    expect(picked).toHaveLength(9);
  });

  it('dart grows from text pivots too, and refuses those of another width', async () => {
    const kept = async (textEmbeddings?: object) =>
      (await chooserOf('dart', textEmbeddings && { textEmbeddings }).choose(imageOf(), 20)).kept;
    expect(await kept({ data: normal(77, 5 * F), dims: [5, F] })).not.toEqual(await kept());
    await expect(kept({ data: normal(77, 5), dims: [5, 1] })).rejects.toThrow(/^textEmbeddings.dims: got \[5, 1\]/);
  });

  it('a question of another width is refused by that name', async () => {
    const other = imageOf({ text: async () => matrix(3, 1, E + 1) });
    for (const name of ['cdpruner', 'trim'] as const)
      await expect(chooserOf(name).choose(other, 4)).rejects.toThrow(/^question: got rows of 9 elements, wanted 8/);
  });

  it('flowcut needs values', async () => {
    const image = imageOf();
    const tap = async (name: TapName) => {
      const { hidden, weights } = await image.tap(name);
      return { hidden, weights: { ...weights, v: undefined } };
    };
    await expect(chooserOf('flowcut').choose({ ...image, tap }, 4)).rejects.toThrow(
      /^method: got the tap 'penultimate' without values/,
    );
  });
});

describe('HiRED on tiles', () => {
  const tiles = [1, 2, 3, 4, 5].map((seed) => imageOf({ seed }));
  const grid = { rows: 2, columns: 2 };

  it.each([1, 7, 40, 5 * P])('keeps %d of all tiles together', async (keep) => {
    const { tiles: choices, budget } = await chooserOf('hired').chooseTiles!(tiles, grid, keep);
    expect([...budget]).toEqual(choices.map(({ kept }) => kept.length));
    expect(budget.reduce((sum, count) => sum + count)).toBe(keep);
  });

  it('gives a tile without patches nothing', async () => {
    const none = { data: new Float32Array(), rows: 0, cols: D };
    const empty = imageOf({ patches: new Int32Array(), states: () => none, grid: { rows: 0, columns: 0 } });
    const { budget } = await chooserOf('hired').chooseTiles!([...tiles.slice(0, 4), empty], grid, 60);
    expect([budget[4], budget.reduce((sum, count) => sum + count)]).toEqual([0, 60]);
  });
});
