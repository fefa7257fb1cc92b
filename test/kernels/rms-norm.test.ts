import { afterAll, describe, expect, it } from 'vitest';
import { rmsNorm } from '../../src/kernels/rms-norm.js';
import { float32 } from '../../src/tensor.js';
import { backendsUnderTest, normal, normalTensor, relativeError, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('rmsNorm on %s', (_, backend) => {
  it('divides a row by the root of its mean square before the weight', () => {
    const y = backend.sync.rmsNorm({
      x: float32(Float32Array.of(1, 2, 3, 4), [1, 4]),
      weight: Float32Array.of(1, 1, 1, 2),
      epsilon: 1e-12,
    });
    const root = Math.sqrt(30 / 4);
    expect(relativeError(values(y), [1 / root, 2 / root, 3 / root, 8 / root])).toBeLessThan(1e-6);
  });

  it('adds epsilon to the mean square, which counts for small rows', () => {
    const y = backend.sync.rmsNorm({
      x: float32(Float32Array.of(3e-3, -4e-3), [1, 2]),
      weight: Float32Array.of(1, 1),
      epsilon: 1e-5,
    });
    const root = Math.sqrt(12.5e-6 + 1e-5);
    expect(relativeError(values(y), [3e-3 / root, -4e-3 / root])).toBeLessThan(1e-6);
  });

  it.each([
    [1, 1],
    [2, 17],
    [33, 48],
    [65, 80],
    [17, 1280],
  ])('agrees with float64 at [%i, %i]', async (rows, cols) => {
    const [x, weight] = [normalTensor(1, rows, cols, 3), normal(2, cols)];
    const want = rmsNorm({ data: values(x), rows, cols }, weight, 1e-6).data;
    expect(relativeError(values(await backend.rmsNorm({ x, weight, epsilon: 1e-6 })), want)).toBeLessThan(2e-6);
  });

  it('leaves a row of zeros at zero', () => {
    const y = backend.sync.rmsNorm({ x: float32(new Float32Array(32), [2, 16]), weight: normal(3, 16) });
    expect([...values(y)].every((value) => value === 0)).toBe(true);
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY, 3e38])('names the row that holds %d', async (bad) => {
    const x = normalTensor(5, 9, 32);
    values(x)[6 * 32 + 31] = bad;
    const args = { x, weight: normal(6, 32) };
    await expect(backend.rmsNorm(args)).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(/^x: .*row 6/),
    });
    values(x)[6 * 32 + 31] = 0;
    await expect(backend.rmsNorm(args)).resolves.toBeDefined();
  });
});
