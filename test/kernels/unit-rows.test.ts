import { afterAll, describe, expect, it } from 'vitest';
import { unitRows } from '../../src/kernels/unit-rows.js';
import { float32 } from '../../src/tensor.js';
import { backendsUnderTest, normalTensor, relativeError, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('unitRows on %s', (_, backend) => {
  it('divides by the length, and leaves a zero row zero', () => {
    const y = backend.sync.unitRows({ x: float32(Float32Array.of(3, 4, 0, 0), [2, 2]) });
    expect(relativeError(values(y), [0.6, 0.8, 0, 0])).toBeLessThan(1e-7);
  });

  it('brings a very short row to unit length', () => {
    const y = backend.sync.unitRows({ x: float32(Float32Array.of(3e-8, 4e-8), [1, 2]) });
    expect(relativeError(values(y), [0.6, 0.8])).toBeLessThan(1e-6);
  });

  it.each([
    [1, 1],
    [7, 20],
    [65, 96],
    [33, 768],
  ])('agrees with float64 at [%i, %i]', async (rows, cols) => {
    const x = normalTensor(1, rows, cols, 5);
    const want = unitRows({ data: values(x), rows, cols }).data;
    expect(relativeError(values(await backend.unitRows({ x })), want)).toBeLessThan(1e-6);
  });

  it.each([Number.NaN, Number.NEGATIVE_INFINITY, 1e30])('names the row that holds %d', async (bad) => {
    const x = normalTensor(1, 5, 16);
    values(x)[2 * 16] = bad;
    await expect(backend.unitRows({ x })).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(/row 2/),
    });
  });
});
