import { afterAll, describe, expect, it } from 'vitest';
import { merge } from '../../src/kernels/merge.js';
import { float32 } from '../../src/tensor.js';
import { backendsUnderTest, normalTensor, relativeError, uniform, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('merge on %s', (_, backend) => {
  it('joins each row to the centre of its direction and takes the plain mean', () => {
    const features = float32(Float32Array.of(1, 0, 0, 2, 5, 1, 1, 5, -1, -2), [5, 2]);
    const { tokens, assignment, counts } = backend.sync.merge({ features, kept: Int32Array.of(0, 1) });
    // Rows 2 and 3 lie near the centres; row 4 points away from both, and least from the first.
    expect([...assignment]).toEqual([0, 1, 0, 1, 0]);
    expect([...counts]).toEqual([3, 2]);
    expect(relativeError(values(tokens), [5 / 3, -1 / 3, 0.5, 3.5])).toBeLessThan(1e-6);
  });

  it('gives a tie to the centre that comes first, and keeps centres apart even when they are equal', () => {
    const features = float32(Float32Array.of(1, 1, 1, 1, 1, 1), [3, 2]);
    const { assignment, counts } = backend.sync.merge({ features, kept: Int32Array.of(1, 2) });
    expect([...assignment]).toEqual([0, 0, 1]);
    expect([...counts]).toEqual([2, 1]);
  });

  it('takes zero rows, as centre and as member', () => {
    const features = float32(Float32Array.of(0, 0, 1, 0, 0, 0), [3, 2]);
    expect([...backend.sync.merge({ features, kept: Int32Array.of(0, 1) }).assignment]).toEqual([0, 1, 0]);
  });

  it.each([
    [1, 1, 8],
    [36, 1, 32],
    [64, 9, 20],
    [144, 16, 128],
    [300, 299, 48],
    [257, 257, 32],
    [577, 64, 80],
  ])('agrees with float64 for %i rows, %i kept, width %i', async (P, K, D) => {
    const features = normalTensor(P, P, D);
    const next = uniform(K);
    const order = Array.from({ length: P }, (_, i) => [next(), i]).sort((a, b) => a[0] - b[0]);
    const kept = Int32Array.from(order.slice(0, K), ([, i]) => i).sort();
    const want = merge({ data: values(features), rows: P, cols: D }, kept);
    const got = await backend.merge({ features, kept });
    expect(got.assignment).toEqual(want.assignment);
    expect(got.counts).toEqual(want.counts);
    expect(relativeError(values(got.tokens), want.tokens.data)).toBeLessThan(2e-6);
  });

  it('names the row that is not finite', async () => {
    const features = normalTensor(1, 20, 16);
    values(features)[13 * 16 + 5] = Number.NaN;
    await expect(backend.merge({ features, kept: Int32Array.of(1) })).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(/^features: .*row 13/),
    });
  });
});
