import { afterAll, describe, expect, it } from 'vitest';
import { layerNorm } from '../../src/kernels/layer-norm.js';
import { float32 } from '../../src/tensor.js';
import { backendsUnderTest, normal, normalTensor, relativeError, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('layerNorm on %s', (_, backend) => {
  it('normalises a row to mean 0 and variance 1 before weight and bias', () => {
    const y = backend.sync.layerNorm({
      x: float32(Float32Array.of(1, 2, 3, 4), [1, 4]),
      weight: Float32Array.of(1, 1, 1, 2),
      bias: Float32Array.of(0, 0, 0, 10),
      epsilon: 1e-12,
    });
    const unit = 1 / Math.sqrt(1.25);
    expect(relativeError(values(y), [-1.5 * unit, -0.5 * unit, 0.5 * unit, 10 + 3 * unit])).toBeLessThan(1e-6);
  });

  it.each([
    [1, 1],
    [2, 17],
    [33, 48],
    [65, 80],
    [17, 1024],
  ])('agrees with float64 at [%i, %i]', async (rows, cols) => {
    const [x, weight, bias] = [normalTensor(1, rows, cols, 3), normal(2, cols), normal(3, cols)];
    const want = layerNorm({ data: values(x), rows, cols }, weight, bias, 1e-5).data;
    expect(relativeError(values(await backend.layerNorm({ x, weight, bias })), want)).toBeLessThan(2e-6);
  });

  it('keeps its precision when the mean is far from zero', () => {
    const x = normal(4, 5 * 64).map((value) => value + 1000);
    const [weight, bias] = [new Float32Array(64).fill(1), new Float32Array(64)];
    const want = layerNorm({ data: x, rows: 5, cols: 64 }, weight, bias, 1e-5).data;
    const got = backend.sync.layerNorm({ x: float32(x, [5, 64]), weight, bias });
    expect(relativeError(values(got), want)).toBeLessThan(1e-4);
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY, 3e38])('names the row that holds %d', async (bad) => {
    const x = normalTensor(5, 9, 32);
    values(x)[6 * 32 + 31] = bad;
    const args = { x, weight: normal(6, 32), bias: normal(7, 32) };
    await expect(backend.layerNorm(args)).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(/^x: .*row 6/),
    });
    values(x)[6 * 32 + 31] = 0;
    await expect(backend.layerNorm(args)).resolves.toBeDefined();
  });
});
