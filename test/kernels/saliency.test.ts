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

  it('turns q and k by the tables of a rotary embedding', () => {
    // One head of two columns: a turn by 90 degrees takes [a, b] to [-b, a].
    const q = float32(Float32Array.of(1, 0, 1, 0), [2, 2]);
    const k = float32(Float32Array.of(0, 3, 0, 3), [2, 2]);
    const rotary = {
      cos: float32(Float32Array.of(1, 1, 0, 0), [2, 2]),
      sin: float32(Float32Array.of(0, 0, 1, 1), [2, 2]),
    };
    const scores = backend.sync.saliency({ q, k, heads: 1, classToken: false, rotary });
    // rot(q) = (1, 0), (0, 1); rot(k) = (0, 3), (-3, 0).
    const score = (x: number) => Math.exp(x / Math.SQRT2);
    const rows = [
      [score(0), score(-3)],
      [score(3), score(0)],
    ].map(([a, b]) => [a / (a + b), b / (a + b)]);
    expect(relativeError(scores, [(rows[0][0] + rows[1][0]) / 2, (rows[0][1] + rows[1][1]) / 2])).toBeLessThan(1e-6);
  });

  it.each([
    [2, 1, 16],
    [17, 2, 40],
    [65, 3, 20],
    [145, 2, 80],
    [577, 1, 72],
  ])('agrees with float64 under rotation, for %i rows, %i heads of %i', async (n, heads, dh) => {
    const [q, k] = [normalTensor(1, n, heads * dh), normalTensor(2, n, heads * dh)];
    const angles = normalTensor(3, n, dh, 3);
    const rotary = {
      cos: float32(values(angles).map(Math.cos), [n, dh]),
      sin: float32(values(angles).map(Math.sin), [n, dh]),
    };
    const of = (x: typeof q) => ({ data: values(x), rows: n, cols: heads * dh });
    for (const classToken of [true, false]) {
      const got = await backend.saliency({ q, k, heads, classToken, rotary });
      const tables = { cos: values(rotary.cos), sin: values(rotary.sin) };
      expect(relativeError(got, saliency(of(q), of(k), heads, classToken, tables))).toBeLessThan(5e-6);
    }
  });

  it('refuses tables that do not fit', () => {
    const q = normalTensor(1, 4, 30);
    const table = (rows: number, cols: number) => normalTensor(2, rows, cols);
    const call = (heads: number, rotary: unknown) => () =>
      backend.sync.saliency({ q, k: q, heads, rotary: rotary as never });
    const fits = { cos: table(4, 10), sin: table(4, 10) };
    expect(call(3, fits)).not.toThrow();
    expect(call(2, { cos: table(4, 15), sin: table(4, 15) })).toThrow(
      /^rotary\.cos: got tables for heads of 15 columns/,
    );
    expect(call(3, { cos: table(4, 10) })).toThrow(/^rotary\.sin: got nothing beside rotary\.cos, wanted both tables/);
    expect(call(3, { ...fits, sin: table(3, 10) })).toThrow(/^rotary\.sin\.dims: got \[3, 10\], wanted \[4, 10\]/);
    expect(call(3, { ...fits, tan: table(4, 10) })).toThrow(/^rotary: got the unknown option 'tan'/);
  });
});
