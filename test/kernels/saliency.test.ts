import { afterAll, describe, expect, it } from 'vitest';
import { saliency } from '../../src/kernels/saliency.js';
import { float32 } from '../../src/tensor.js';
import { backendsUnderTest, normalTensor, relativeError, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('saliency on %s', (_, backend) => {
  it('is the class token row without its own column', () => {
    const q = float32(Float32Array.of(1, 7, 7), [3, 1]);
    const k = float32(Float32Array.of(0, Math.log(2), Math.log(5)), [3, 1]);
    const scores = backend.sync.saliency({ q, k, heads: 1 });
    expect(relativeError(scores, [2 / 8, 5 / 8])).toBeLessThan(1e-6);
  });

  it('is the mean attention received without a class token, and sums to 1', () => {
    const [q, k] = [normalTensor(1, 40, 32), normalTensor(2, 40, 32)];
    const scores = backend.sync.saliency({ q, k, heads: 2, classToken: false });
    expect(scores.reduce((sum, x) => sum + x, 0)).toBeCloseTo(1, 5);
  });

  it.each([
    [2, 1, 16],
    [17, 2, 32],
    [65, 3, 20],
    [145, 4, 32],
    [600, 1, 64],
  ])('agrees with float64 for %i rows, %i heads of %i', async (n, heads, dh) => {
    const [q, k] = [normalTensor(1, n, heads * dh), normalTensor(2, n, heads * dh)];
    const of = (x: typeof q) => ({ data: values(x), rows: n, cols: heads * dh });
    for (const classToken of [true, false]) {
      const got = await backend.saliency({ q, k, heads, classToken });
      expect(relativeError(got, saliency(of(q), of(k), heads, classToken))).toBeLessThan(5e-6);
    }
  });
});
