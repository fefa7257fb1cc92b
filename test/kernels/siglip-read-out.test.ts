import { afterAll, describe, expect, it } from 'vitest';
import { siglipReadOut } from '../../src/kernels/siglip-read-out.js';
import { float32 } from '../../src/tensor.js';
import { backendsUnderTest, normalTensor, randomBlock, relativeError, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

const [width, mlpWidth] = [48, 68];
const head = randomBlock(3, { width, heads: 4, norm: 'layer', mlpWidth }).siglip!;
const query = normalTensor(5, 1, width).data as Float32Array;
const tensor = ({ weight, bias }: { weight: Float32Array; bias: Float32Array }) => ({
  weight: float32(weight, [bias.length, weight.length / bias.length]),
  bias,
});
const { postNorm, norm } = head;
const args = {
  postNorm,
  query,
  key: tensor(head.k),
  value: tensor(head.v),
  out: tensor(head.out),
  norm,
  fc1: tensor(head.fc1),
  fc2: tensor(head.fc2),
};
const exact = { postNorm, query, key: head.k, value: head.v, out: head.out, norm, fc1: head.fc1, fc2: head.fc2 };

describe.each(backends)('siglipReadOut on %s', (_, backend) => {
  it.each([
    [1, 4],
    [17, 1],
    [65, 3],
    [145, 4],
  ])('agrees with float64 for %i rows, %i heads', async (rows, heads) => {
    const attention = normalTensor(1, rows, width);
    const want = siglipReadOut({ data: values(attention), rows, cols: width }, { ...exact, heads, epsilon: 1e-6 });
    const got = await backend.siglipReadOut({ ...args, attention, heads });
    expect(got.embeddings.dims).toEqual([rows, width]);
    expect(relativeError(values(got.embeddings), want.embeddings.data)).toBeLessThan(1e-5);
    expect(relativeError(got.global, want.global)).toBeLessThan(1e-5);
    expect(relativeError(got.saliency, want.saliency)).toBeLessThan(1e-5);
  });

  it('gives a row by itself what it gives a sequence of that row', () => {
    const attention = normalTensor(2, 5, width);
    const { embeddings } = backend.sync.siglipReadOut({ ...args, attention, heads: 4 });
    for (let i = 0; i < 5; i++) {
      const row = float32(values(attention).slice(i * width, (i + 1) * width), [1, width]);
      const alone = backend.sync.siglipReadOut({ ...args, attention: row, heads: 4 });
      expect([...alone.saliency]).toEqual([1]);
      expect(relativeError(alone.global, values(embeddings).slice(i * width, (i + 1) * width))).toBeLessThan(1e-5);
    }
  });

  it('names the row that is not finite', async () => {
    const attention = normalTensor(2, 5, width);
    values(attention)[3 * width] = Number.NaN;
    await expect(backend.siglipReadOut({ ...args, attention, heads: 4 })).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      row: 3,
    });
  });

  it.each<[Record<string, unknown>, string, RegExp]>([
    [{ heads: 5 }, 'ERR_VALUE', /^heads: got 5, wanted a divisor of the width 48/],
    [{ query: query.subarray(1) }, 'ERR_SHAPE', /^query: got 47 elements/],
    [{ fc2: tensor(head.out) }, 'ERR_SHAPE', /^fc2\.weight\.dims: got \[48, 48\], wanted \[48, 68\]/],
    [{ fc1: { weight: args.fc1.weight } }, 'ERR_DTYPE', /^fc1\.bias/],
    [{ key: args.fc1 }, 'ERR_SHAPE', /^key\.weight\.dims/],
    [{ epsilon: 0 }, 'ERR_VALUE', /^epsilon/],
    [{ probe: query }, 'ERR_VALUE', /^args: got the unknown option 'probe'/],
  ])('refuses %o', async (change, code, message) => {
    const given = { ...args, attention: normalTensor(2, 5, width), heads: 4, ...change } as never;
    await expect(backend.siglipReadOut(given)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });
});
