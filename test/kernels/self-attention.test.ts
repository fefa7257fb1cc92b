import { afterAll, describe, expect, it } from 'vitest';
import { attention } from '../../src/kernels/attention.js';
import { rotated, saliency } from '../../src/kernels/saliency.js';
import { selfAttention } from '../../src/kernels/self-attention.js';
import { float32 } from '../../src/tensor.js';
import { backendsUnderTest, normalTensor, relativeError, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('selfAttention on %s', (_, backend) => {
  it('turns q and k, weighs the values, and gives each row what it received', () => {
    // One head of two columns: a turn by 90 degrees takes [a, b] to [-b, a].
    const q = float32(Float32Array.of(1, 0, 1, 0), [2, 2]);
    const k = float32(Float32Array.of(0, 3, 0, 3), [2, 2]);
    const v = float32(Float32Array.of(10, 1, 20, 2), [2, 2]);
    const rotary = {
      cos: float32(Float32Array.of(1, 1, 0, 0), [2, 2]),
      sin: float32(Float32Array.of(0, 0, 1, 1), [2, 2]),
    };
    // rot(q) = (1, 0), (0, 1); rot(k) = (0, 3), (-3, 0).
    const share = 1 / (1 + Math.exp(-3 / Math.SQRT2));
    const { context, saliency: scores } = backend.sync.selfAttention({ q, k, v, heads: 1, rotary });
    expect(context.dims).toEqual([2, 2]);
    const y = share + 2 * (1 - share);
    expect(relativeError(values(context), [10 * y, y, 10 * y, y])).toBeLessThan(1e-6);
    expect(relativeError(scores, [share, 1 - share])).toBeLessThan(1e-6);
  });

  it.each([
    [1, 1, 16],
    [2, 3, 20],
    [17, 2, 32],
    [65, 4, 16],
    [97, 1, 80],
    [145, 2, 72],
    [600, 1, 64],
  ])('agrees with float64 for %i rows, %i heads of %i, turned and not', async (n, heads, dh) => {
    const [q, k, v] = [1, 2, 3].map((seed) => normalTensor(seed, n, heads * dh));
    const angles = normalTensor(4, n, dh, 3);
    const table = (of: (angle: number) => number) => float32(values(angles).map(of), [n, dh]);
    const rotary = { cos: table(Math.cos), sin: table(Math.sin) };
    const tables = { cos: values(rotary.cos), sin: values(rotary.sin) };
    const of = (x: typeof q) => ({ data: values(x), rows: n, cols: heads * dh });
    for (const turned of [true, false]) {
      const [Q, K] = [q, k].map((x) => (turned ? rotated(of(x), heads, tables) : of(x)));
      const got = await backend.selfAttention({ q, k, v, heads, rotary: turned ? rotary : null });
      expect(relativeError(values(got.context), attention(Q, K, of(v), heads).data)).toBeLessThan(5e-6);
      expect(relativeError(got.saliency, saliency(Q, K, heads, false))).toBeLessThan(5e-6);
    }
  });

  it.each([
    [1, 2, 8],
    [17, 2, 40],
    [65, 3, 20],
    [145, 2, 80],
  ])('takes tables of any magnitude for %i rows, %i heads of %i', async (n, heads, dh) => {
    const [q, k, v] = [1, 2, 3].map((seed) => normalTensor(seed, n, heads * dh));
    const rotary = { cos: normalTensor(4, n, dh), sin: normalTensor(5, n, dh) };
    const of = (x: typeof q) => ({ data: values(x), rows: n, cols: heads * dh });
    const tables = { cos: values(rotary.cos), sin: values(rotary.sin) };
    const want = selfAttention(of(q), of(k), of(v), heads, tables);
    const got = await backend.selfAttention({ q, k, v, heads, rotary });
    expect(got.context.dims).toEqual([n, heads * dh]);
    expect(relativeError(values(got.context), want.context.data)).toBeLessThan(1e-5);
    expect(relativeError(got.saliency, want.saliency)).toBeLessThan(1e-5);
  });

  it('is the attention of q and k where nothing is turned', () => {
    const [q, k, v] = [1, 2, 3].map((seed) => normalTensor(seed, 50, 48));
    const { context } = backend.sync.selfAttention({ q, k, v, heads: 3 });
    expect(relativeError(values(context), values(backend.sync.attention({ q, k, v, heads: 3 })))).toBeLessThan(1e-5);
  });

  it('has the saliency of the kernel that computes nothing else, to the bit', async () => {
    const [q, k, v] = [1, 2, 3].map((seed) => normalTensor(seed, 130, 96));
    const { saliency: scores } = await backend.selfAttention({ q, k, v, heads: 3 });
    expect(scores).toEqual(backend.sync.saliency({ q, k, heads: 3, classToken: false }));
  });

  it('stays exact when scores are far beyond the range of exp', () => {
    const [n, dh] = [70, 32];
    const [q, v] = [normalTensor(5, n, dh, 40), normalTensor(6, n, dh)];
    const of = (x: typeof q) => ({ data: values(x), rows: n, cols: dh });
    const { context } = backend.sync.selfAttention({ q, k: q, v, heads: 1 });
    expect(relativeError(values(context), attention(of(q), of(q), of(v), 1).data)).toBeLessThan(1e-3);
  });

  it('refuses what does not fit', () => {
    const x = normalTensor(1, 4, 30);
    const table = normalTensor(2, 4, 15);
    const call = (change: object) => () => backend.sync.selfAttention({ q: x, k: x, v: x, heads: 3, ...change });
    expect(call({})).not.toThrow();
    expect(call({ v: normalTensor(1, 5, 30) })).toThrow(/^v\.dims: got \[5, 30\], wanted \[4, 30\]/);
    expect(call({ heads: 4 })).toThrow(/^heads: got 4, wanted a divisor of the width 30/);
    expect(call({ heads: 2, rotary: { cos: table, sin: table } })).toThrow(
      /^rotary\.cos: got tables for heads of 15 columns/,
    );
    expect(call({ classToken: false })).toThrow(/^args: got the unknown option 'classToken'/);
  });
});
