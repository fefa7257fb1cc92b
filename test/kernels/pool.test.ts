import { afterAll, describe, expect, it } from 'vitest';
import { pool } from '../../src/kernels/pool.js';
import { backendsUnderTest, normal, relativeError } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('pool on %s', (_, backend) => {
  it('is the mean over the patches of each unit', async () => {
    const args = { scores: Float32Array.of(1, 2, 3, 10, 5), unit: Int32Array.of(1, 0, 1, 2, 1) };
    expect([...(await backend.pool(args))]).toEqual([2, 3, 10]);
  });

  it('takes units of 64 bits, and tensors of them', () => {
    const scores = Float32Array.of(1, 2, 3);
    const unit = BigInt64Array.of(0n, 1n, 0n);
    expect([...backend.sync.pool({ scores, unit })]).toEqual([2, 2]);
    expect([...backend.sync.pool({ scores, unit: { type: 'int64', data: unit, dims: [1, 3] } })]).toEqual([2, 2]);
  });

  it.each([
    [1, 1],
    [576, 64],
    [1000, 999],
    [4096, 3],
  ])('agrees with float64 for %i patches of %i units', (rows, units) => {
    const scores = normal(1, rows).map(Math.abs);
    const unit = Int32Array.from({ length: rows }, (_, i) => (i * 7919) % units);
    expect(relativeError(backend.sync.pool({ scores, unit }), pool(scores, unit, units))).toBeLessThan(1e-5);
  });

  it.each([
    [
      Int32Array.of(0, 2, 0),
      'ERR_VALUE',
      /^unit: got no patch for unit 1, wanted a patch for each of the units 0 to 2/,
    ],
    [Int32Array.of(0, -1, 0), 'ERR_VALUE', /^unit\[1\]: got -1, wanted a unit from 0 to 2/],
    [Int32Array.of(0, 3, 0), 'ERR_VALUE', /^unit\[1\]: got 3, wanted/],
    [BigInt64Array.of(0n, 0n, 2n ** 32n), 'ERR_VALUE', /^unit\[2\]: got 4294967296, wanted/],
    [Int32Array.of(0, 1), 'ERR_SHAPE', /^unit: got 2 elements for dims \[2\], wanted 3 elements, one per patch/],
    [Float32Array.of(0, 1, 2), 'ERR_DTYPE', /^unit: got Float32Array, wanted an Int32Array or a BigInt64Array/],
  ])('refuses the units %o', async (unit, code, message) => {
    const args = { scores: Float32Array.of(1, 2, 3), unit: unit as Int32Array };
    await expect(backend.pool(args)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });
});
