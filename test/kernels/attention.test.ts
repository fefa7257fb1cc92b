import { afterAll, describe, expect, it } from 'vitest';
import { attention } from '../../src/kernels/attention.js';
import { float32 } from '../../src/tensor.js';
import { backendsUnderTest, normalTensor, relativeError, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('attention on %s', (_, backend) => {
  it('weighs the values of two rows by softmax(q q / sqrt(dh))', () => {
    const q = float32(Float32Array.of(1, 0), [2, 1]);
    const v = float32(Float32Array.of(10, 20), [2, 1]);
    const share = Math.E / (Math.E + 1);
    const y = backend.sync.attention({ q, k: q, v, heads: 1 });
    expect(relativeError(values(y), [10 * share + 20 * (1 - share), 15])).toBeLessThan(1e-6);
  });

  it.each([
    [1, 1, 16],
    [2, 3, 20],
    [17, 2, 32],
    [65, 4, 16],
    [97, 1, 80],
    [145, 2, 64],
    [257, 2, 40],
    [700, 1, 64],
  ])('agrees with float64 for %i rows, %i heads of %i', async (n, heads, dh) => {
    const [q, k, v] = [1, 2, 3].map((seed) => normalTensor(seed, n, heads * dh));
    const of = (x: typeof q) => ({ data: values(x), rows: n, cols: heads * dh });
    const qq = values(await backend.attention({ q, k: q, v, heads }));
    expect(relativeError(qq, attention(of(q), of(q), of(v), heads).data)).toBeLessThan(5e-6);
    const qk = values(backend.sync.attention({ q, k, v, heads }));
    expect(relativeError(qk, attention(of(q), of(k), of(v), heads).data)).toBeLessThan(5e-6);
  });

  it('stays exact when scores are far beyond the range of exp', () => {
    const [n, dh] = [70, 32];
    const [q, v] = [normalTensor(5, n, dh, 40), normalTensor(6, n, dh)];
    const want = attention(
      { data: values(q), rows: n, cols: dh },
      { data: values(q), rows: n, cols: dh },
      { data: values(v), rows: n, cols: dh },
      1,
    );
    expect(relativeError(values(backend.sync.attention({ q, k: q, v, heads: 1 })), want.data)).toBeLessThan(1e-3);
  });
});
