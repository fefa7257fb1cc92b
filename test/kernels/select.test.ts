import { afterAll, describe, expect, it } from 'vitest';
import { select } from '../../src/kernels/select.js';
import { backendsUnderTest, normal, uniform } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('select on %s', (_, backend) => {
  const pick = (task: number[] | null, saliency: number[] | null, keep: number, taskKeep: number) => {
    const map = (scores: number[] | null) => scores && Float32Array.from(scores);
    const { indices, source } = backend.sync.select({ task: map(task), saliency: map(saliency), keep, taskKeep });
    return [[...indices], [...source]];
  };

  it('takes the largest task scores, then the largest saliencies of the others', () =>
    expect(pick([1, 9, 3, 7], [5, 8, 6, 7], 3, 2)).toEqual([
      [1, 2, 3],
      [0, 1, 0],
    ]));
  it('gives the lower index on ties', () =>
    expect(pick([5, 5, 5, 5, 5], [7, 7, 7, 7, 7], 3, 1)).toEqual([
      [0, 1, 2],
      [0, 1, 1],
    ]));
  it('counts -0 and +0 as equal', () =>
    expect(pick([-0, 0, -1], [0, -0, 0], 2, 1)).toEqual([
      [0, 1],
      [0, 1],
    ]));
  it('orders infinities', () =>
    expect(pick([Number.NEGATIVE_INFINITY, -1e38, Number.POSITIVE_INFINITY], [1, 2, 3], 2, 2)).toEqual([
      [1, 2],
      [0, 0],
    ]));
  it('passes over the NaN of an entry that is taken', () =>
    expect(pick([9, 1, 2], [Number.NaN, 1, 2], 2, 1)).toEqual([
      [0, 2],
      [0, 1],
    ]));
  it('needs no map from which nothing is taken', () => {
    expect(pick(null, [1, 3, 2], 2, 0)).toEqual([
      [1, 2],
      [1, 1],
    ]);
    expect(pick([1, 3, 2], null, 2, 2)).toEqual([
      [1, 2],
      [0, 0],
    ]);
  });
  it('keep = 0', () => expect(pick([1, 2], [1, 2], 0, 0)).toEqual([[], []]));
  it('keep = n', () =>
    expect(pick([3, 1, 2], [1, 2, 3], 3, 1)).toEqual([
      [0, 1, 2],
      [0, 1, 1],
    ]));

  it('agrees with the reference on random scores with many ties', async () => {
    const next = uniform(3);
    for (const size of [1, 2, 65, 577, 3000]) {
      const [task, saliency] = [1, 2].map((seed) => normal(size + seed, size).map((x) => Math.round(4 * x) / 4));
      for (const keep of new Set([0, 1, size >> 1, size])) {
        const taskKeep = Math.floor(next() * (keep + 1));
        expect(await backend.select({ task, saliency, keep, taskKeep })).toEqual(
          select(task, saliency, keep, taskKeep),
        );
      }
    }
  });

  it('names the map and the entry that is NaN', async () => {
    const [good, bad] = [Float32Array.of(1, 2, 3), Float32Array.of(1, Number.NaN, 3)];
    const failure = (message: RegExp) => ({ code: 'ERR_NOT_FINITE', message: expect.stringMatching(message) });
    await expect(backend.select({ task: bad, saliency: good, keep: 2, taskKeep: 1 })).rejects.toMatchObject(
      failure(/^task: .*1/),
    );
    await expect(backend.select({ task: good, saliency: bad, keep: 2, taskKeep: 1 })).rejects.toMatchObject(
      failure(/^saliency: .*1/),
    );
  });

  it.each([
    [{ keep: 1, taskKeep: 0 }, /^saliency: got neither task nor saliency/],
    [{ task: Float32Array.of(1), keep: 2, taskKeep: 2 }, /^keep: got 2, wanted an integer from 0 to 1/],
    [{ task: Float32Array.of(1), keep: 1, taskKeep: 0 }, /^taskKeep: got 0, wanted an integer from 1 to 1/],
    [{ saliency: Float32Array.of(1), keep: 1, taskKeep: 1 }, /^taskKeep: got 1, wanted an integer from 0 to 0/],
    [
      { task: Float32Array.of(1), saliency: new Float32Array(2), keep: 1, taskKeep: 1 },
      /^saliency: got 2 elements, wanted 1 elements/,
    ],
    [{ scores: Float32Array.of(1), keep: 1, taskKeep: 1 }, /^args: got the unknown option 'scores'/],
  ])('refuses %o', (args, message) => expect(() => backend.sync.select(args)).toThrow(message));
});
