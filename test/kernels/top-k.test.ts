import { afterAll, describe, expect, it } from 'vitest';
import { topK } from '../../src/kernels/top-k.js';
import { backendsUnderTest, normal, uniform } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('topK on %s', (_, backend) => {
  const pick = (scores: number[], k: number, excluded?: number[]) => [
    ...backend.sync.topK({ scores: Float32Array.from(scores), k, excluded: excluded && Uint8Array.from(excluded) }),
  ];

  it('gives the largest in ascending order of index', () => expect(pick([1, 9, 3, 7], 2)).toEqual([1, 3]));
  it('gives the lower index on ties', () => expect(pick([5, 7, 7, 7, 5], 2)).toEqual([1, 2]));
  it('counts -0 and +0 as equal', () => expect(pick([-0, 0, -0, -1], 2)).toEqual([0, 1]));
  it('orders infinities', () =>
    expect(pick([Number.NEGATIVE_INFINITY, -1e38, Number.POSITIVE_INFINITY], 2)).toEqual([1, 2]));
  it('passes over excluded entries, NaN among them', () =>
    expect(pick([9, Number.NaN, 8, 7], 2, [1, 1, 0, 0])).toEqual([2, 3]));
  it('k = 0', () => expect(pick([1, 2], 0)).toEqual([]));
  it('k = n', () => expect(pick([3, 1, 2], 3)).toEqual([0, 1, 2]));

  it('agrees with a full sort on random scores with many ties', async () => {
    const next = uniform(3);
    for (const size of [1, 2, 65, 577, 3000]) {
      const scores = normal(size, size).map((x) => Math.round(4 * x) / 4);
      const excluded = Uint8Array.from({ length: size }, () => Number(next() < 0.3));
      const free = excluded.filter((byte) => byte === 0).length;
      for (const k of new Set([0, Math.min(1, free), free >> 1, free]))
        expect(await backend.topK({ scores, k, excluded })).toEqual(topK(scores, k, excluded));
    }
  });

  it('names the entry that is NaN', async () => {
    const scores = Float32Array.of(1, 2, Number.NaN);
    await expect(backend.topK({ scores, k: 1 })).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(/^scores: .*2/),
    });
  });
});
