import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { float32Tensor, integerValues, storedTensor } from '../../src/cli/golden-file.js';
import { farthestPoints } from '../../src/kernels/farthest-points.js';
import { readSafeTensors } from '../../src/safetensors.js';
import { float32, floatToHalf, Tensor } from '../../src/tensor.js';
import { backendsUnderTest, normalTensor, ROOT, uniform, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

/** Rows whose cosines are exact in float32 too: each a unit vector or its opposite. */
function axes(width: number, ...rows: number[]) {
  const x = new Float32Array(rows.length * width);
  rows.forEach((axis, i) => {
    if (axis !== 0) x[i * width + Math.abs(axis) - 1] = Math.sign(axis);
  });
  return float32(x, [rows.length, width]);
}

describe.each(backends)('farthestPoints on %s', (_, backend) => {
  const pick = (x: Tensor, seeds: number[] | null, count: number) => [
    ...backend.sync.farthestPoints({ x, seeds: seeds && Int32Array.from(seeds), count }),
  ];

  it.each(['divprune', 'divprune-all'])('picks what %s of the baselines has', async (name) => {
    const path = join(ROOT, 'test/golden-baselines', `${name}.safetensors`);
    const file = await readSafeTensors(path);
    const picked = integerValues(storedTensor(file, 'output.picked', path), 'picked');
    const x = float32Tensor(file, 'input.features', path);
    expect([...(await backend.farthestPoints({ x, count: picked.length }))]).toEqual(picked);
  });

  it('takes the row farthest from the seeds, then the row farthest from all', () => {
    // To row 0: 1, 2, 1, 0. Row 1 is its opposite; then rows 2 and 3 are left, and 3 is equal to the seed.
    expect(pick(axes(2, 1, -1, 2, 1), [0], 3)).toEqual([1, 2, 3]);
  });
  it('begins with the row whose nearest other row is farthest', () => {
    expect(pick(axes(3, 1, 1, 2, 2, 3), null, 3)).toEqual([4, 0, 2]);
    expect(pick(axes(3, 1, 1, 2, 2, 3), [], 3)).toEqual([4, 0, 2]);
  });
  it('gives the lower index on ties, and never a row twice, when all rows are equal', () => {
    expect(pick(axes(3, 2, 2, 2, 2), null, 4)).toEqual([0, 1, 2, 3]);
    expect(pick(axes(3, 2, 2, 2, 2), [2], 3)).toEqual([0, 1, 3]);
  });
  it('takes zero rows, which are as far from everything as a right angle', () =>
    expect(pick(axes(2, 1, 0, 1, 0, -1), [0], 4)).toEqual([4, 1, 3, 2]));
  it('takes one row, no row, and all rows', () => {
    expect(pick(axes(1, 1), null, 1)).toEqual([0]);
    expect(pick(axes(1, 1), null, 0)).toEqual([]);
    expect(pick(axes(1, 1, -1), [1], 0)).toEqual([]);
    expect(pick(normalTensor(5, 40, 7), null, 40).sort((a, b) => a - b)).toEqual(
      Array.from({ length: 40 }, (_, i) => i),
    );
  });

  it.each([
    [2, 0, 2, 8],
    [36, 0, 9, 32],
    [64, 3, 61, 20],
    [144, 8, 8, 128],
    [300, 0, 1, 48],
    [577, 32, 32, 80],
    [600, 0, 100, 130],
    [1100, 0, 9, 16],
  ])('agrees with float64 for %i rows, %i seeds, %i picks, width %i', async (P, seedCount, count, F) => {
    const x = normalTensor(P + F, P, F);
    const next = uniform(count);
    const order = Array.from({ length: P }, (_, i) => [next(), i]).sort((a, b) => a[0] - b[0]);
    const seeds = Int32Array.from(order.slice(0, seedCount), ([, i]) => i);
    const want = farthestPoints({ data: values(x), rows: P, cols: F }, seeds, count);
    expect(await backend.farthestPoints({ x, seeds, count })).toEqual(want);
  });

  it('reads half precision', () => {
    const x = normalTensor(3, 50, 24);
    const half = Uint16Array.from(values(x), floatToHalf);
    const rounded = new Tensor('float16', half, [50, 24]);
    expect(backend.sync.farthestPoints({ x: rounded, count: 12 })).toHaveLength(12);
  });

  it('names the row that is not finite', async () => {
    const x = normalTensor(1, 20, 16);
    values(x)[13 * 16 + 5] = Number.NaN;
    for (const seeds of [null, Int32Array.of(2)])
      await expect(backend.farthestPoints({ x, seeds, count: 3 })).rejects.toMatchObject({
        code: 'ERR_NOT_FINITE',
        message: expect.stringMatching(/^x: .*row 13/),
      });
  });

  it.each([
    [{ count: 6 }, /^count: got 6, wanted an integer from 0 to 5/],
    [{ count: -1 }, /^count: got -1/],
    [{ seeds: Int32Array.of(0, 1), count: 4 }, /^count: got 4, wanted an integer from 0 to 3/],
    [{ seeds: Int32Array.of(5), count: 1 }, /^seeds\[0\]: got 5, wanted an integer from 0 to 4/],
    [{ seeds: Int32Array.of(1, 1), count: 1 }, /^seeds\[1\]: got 1 again, wanted distinct rows/],
    [{ seeds: [1], count: 1 }, /^seeds: got \[1\], wanted an Int32Array/],
    [{ seed: 1, count: 1 }, /^args: got the unknown option 'seed'/],
  ])('refuses %o', (args, message) =>
    expect(() => backend.sync.farthestPoints({ x: normalTensor(1, 5, 4), ...(args as object) } as never)).toThrow(
      message,
    ),
  );
});
