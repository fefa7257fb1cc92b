import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { float32Tensor, float64Values, integerValues, storedTensor } from '../../src/cli/golden-file.js';
import { dpp } from '../../src/kernels/dpp.js';
import { readSafeTensors } from '../../src/safetensors.js';
import { float32 } from '../../src/tensor.js';
import { backendsUnderTest, normal, normalTensor, ROOT, uniform, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

/** The relevance of a case as its method scales it: with `blend` (rel - min) / (max - min + 1e-6), else (rel - min + 1e-6) / (max - min). */
function scaled(relevance: Float64Array, { theta, blend }: { theta?: number; blend?: number }): Float32Array {
  const least = Math.min(...relevance);
  const spread = Math.max(...relevance) - least;
  const g = relevance.map((r) => (blend === undefined ? (r - least + 1e-6) / spread : (r - least) / (spread + 1e-6)));
  return Float32Array.from(theta === undefined ? g : g.map((x) => Math.exp((theta / (2 * (1 - theta))) * x)));
}

describe.each(backends)('dpp on %s', (_, backend) => {
  const pick = (rows: number[][], relevance: number[], count: number, blend?: number) => {
    const x = float32(Float32Array.from(rows.flat()), [rows.length, rows[0].length]);
    return [...backend.sync.dpp({ x, relevance: Float32Array.from(relevance), count, blend })];
  };

  it.each(['cdpruner', 'cdpruner-blend', 'cdpruner-decoupled', 'cdpruner-rank', 'cdpruner-theta'])(
    'picks what %s of the baselines has',
    async (name) => {
      const path = join(ROOT, 'test/golden-baselines', `${name}.safetensors`);
      const file = await readSafeTensors(path);
      const config = JSON.parse(file.metadata.config) as { theta?: number; blend?: number };
      const picked = integerValues(storedTensor(file, 'output.picked', path), 'picked');
      const relevance = scaled(float64Values(storedTensor(file, 'output.relevance', path), 'relevance'), config);
      const x = float32Tensor(file, 'input.features', path);
      const { blend } = config;
      expect([...(await backend.dpp({ x, relevance, count: picked.length, blend }))]).toEqual(picked);
    },
  );

  it('weighs relevance against difference', () => {
    const rows = [
      [1, 0],
      [1, 0],
      [0, 1],
    ];
    expect(pick(rows, [3, 2, 1], 2)).toEqual([0, 2]);
    expect(pick(rows, [1, 3, 2], 2)).toEqual([1, 2]);
  });
  it('goes on with the largest g^2 once nothing new is left', () => {
    expect(
      pick(
        [
          [1, 0],
          [1, 0],
          [0, 1],
          [0, -1],
          [-1, 0],
        ],
        [1, 0.5, 2, -0.75, 0.25],
        5,
      ),
    ).toEqual([2, 0, 3, 1, 4]);
  });
  it('gives the lower index on ties', () => {
    expect(pick([[2], [1], [3]], [1, 1, 1], 3)).toEqual([0, 1, 2]);
    expect(
      pick(
        [
          [1, 0],
          [0, 1],
          [0, 2],
          [3, 0],
        ],
        [1, 1, 1, 1],
        4,
      ),
    ).toEqual([0, 1, 2, 3]);
  });
  it('asks for difference alone with blend 0', () =>
    expect(
      pick(
        [
          [1, 0],
          [1, 0],
          [0, 1],
        ],
        [0, 9, 0],
        3,
        0,
      ),
    ).toEqual([0, 2, 1]));
  it('takes zero rows and zero relevance last', () => {
    expect(
      pick(
        [
          [0, 0],
          [1, 0],
          [0, 1],
        ],
        [5, 1, 2],
        3,
      ),
    ).toEqual([2, 1, 0]);
    expect(
      pick(
        [
          [1, 0],
          [0, 1],
        ],
        [0, 0],
        2,
      ),
    ).toEqual([0, 1]);
  });
  it('takes one row, and no row', () => {
    expect(pick([[1]], [1], 1)).toEqual([0]);
    expect(pick([[1]], [1], 0)).toEqual([]);
  });

  it.each([
    [2, 2, 8],
    [36, 9, 32],
    [64, 64, 80],
    [144, 16, 128],
    [300, 1, 48],
    [577, 64, 80],
    [577, 100, 30], // more picks than dimensions
    [700, 150, 200],
  ])('agrees with float64 for %i rows, %i picks, width %i', async (P, count, F) => {
    const x = normalTensor(P + F, P, F);
    const next = uniform(P);
    const relevance = Float32Array.from({ length: P }, () => 0.1 + next());
    for (const blend of [1, 0.4]) {
      const want = dpp({ data: values(x), rows: P, cols: F }, relevance, blend, count);
      expect(await backend.dpp({ x, relevance, count, blend })).toEqual(want);
    }
  });

  it('names the row, or the relevance, that is not finite', async () => {
    const [x, bad] = [normalTensor(1, 20, 16), normalTensor(1, 20, 16)];
    values(bad)[13 * 16 + 5] = Number.NaN;
    const failure = (message: RegExp) => ({ code: 'ERR_NOT_FINITE', message: expect.stringMatching(message) });
    const relevance = normal(2, 20);
    await expect(backend.dpp({ x: bad, relevance, count: 3 })).rejects.toMatchObject(failure(/^x: .*row 13/));
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, 1e20]) {
      const wrong = relevance.map((g, i) => (i === 7 ? value : g));
      await expect(backend.dpp({ x, relevance: wrong, count: 3 })).rejects.toMatchObject(
        failure(/^relevance: .*row 7/),
      );
    }
  });

  it.each([
    [{ count: 6 }, /^count: got 6, wanted an integer from 0 to 5/],
    [{ count: 1, blend: 1.5 }, /^blend: got 1.5, wanted a finite number from 0 to 1/],
    [{ count: 1, relevance: new Float32Array(4) }, /^relevance: got 4 elements, wanted 5 elements/],
    [{ count: 1, theta: 0.5 }, /^args: got the unknown option 'theta'/],
  ])('refuses %o', (args, message) => {
    const given = { x: normalTensor(1, 5, 4), relevance: new Float32Array(5), ...(args as object) };
    expect(() => backend.sync.dpp(given as never)).toThrow(message);
  });
});
