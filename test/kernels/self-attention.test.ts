import { afterAll, describe, expect, it } from 'vitest';
import { selfAttention } from '../../src/kernels/self-attention.js';
import { backendsUnderTest, normalTensor, relativeError, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

const SHAPES = [
  [1, 2, 8],
  [17, 2, 40],
  [65, 3, 20],
  [145, 2, 80],
  [300, 1, 64],
];

describe.each(backends)('selfAttention on %s', (_, backend) => {
  it.each(SHAPES)('agrees with float64 for %i rows, %i heads of %i, turned and not', async (n, heads, dh) => {
    const [q, k, v] = [1, 2, 3].map((seed) => normalTensor(seed, n, heads * dh));
    const of = (x: typeof q) => ({ data: values(x), rows: n, cols: heads * dh });
    for (const rotary of [null, { cos: normalTensor(4, n, dh), sin: normalTensor(5, n, dh) }]) {
      const got = await backend.selfAttention({ q, k, v, heads, rotary });
      const tables = rotary && { cos: values(rotary.cos), sin: values(rotary.sin) };
      const want = selfAttention(of(q), of(k), of(v), heads, tables as never);
      expect(got.context.dims).toEqual([n, heads * dh]);
      expect(relativeError(got.context.data as Float32Array, want.context.data)).toBeLessThan(1e-5);
      expect(relativeError(got.saliency, want.saliency)).toBeLessThan(1e-5);
    }
  });

  it('is attention and saliency where nothing is turned', () => {
    const [q, k, v] = [1, 2, 3].map((seed) => normalTensor(seed, 50, 48));
    const { context, saliency } = backend.sync.selfAttention({ q, k, v, heads: 3 });
    const apart = backend.sync.attention({ q, k, v, heads: 3 }).data as Float32Array;
    expect(relativeError(context.data as Float32Array, apart)).toBeLessThan(1e-5);
    expect(relativeError(saliency, backend.sync.saliency({ q, k, heads: 3, classToken: false }))).toBeLessThan(1e-6);
  });

  it('refuses operands of other shapes', () => {
    const [q, v] = [normalTensor(1, 4, 8), normalTensor(2, 5, 8)];
    expect(() => backend.sync.selfAttention({ q, k: q, v, heads: 2 })).toThrow(/^v\.dims: got \[5, 8\]/);
    expect(() => backend.sync.selfAttention({ q, k: q, v: q, heads: 3 })).toThrow(/^heads: got 3/);
  });
});
