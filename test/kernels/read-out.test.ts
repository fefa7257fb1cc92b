import { afterAll, describe, expect, it } from 'vitest';
import { readOut } from '../../src/kernels/read-out.js';
import { float32 } from '../../src/tensor.js';
import { backendsUnderTest, normalTensor, randomHead, relativeError, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('readOut on %s', (_, backend) => {
  it.each([
    [1, 32, 16],
    [17, 48, 20],
    [65, 128, 96],
  ])('agrees with float64 for %i rows, width %i to %i', async (rows, width, projectionDim) => {
    const { out, postNorm, visualProjection } = randomHead(3, { width, heads: 1, projectionDim });
    const context = normalTensor(1, rows, width);
    const want = readOut({ data: values(context), rows, cols: width }, out, postNorm, 1e-5, {
      data: visualProjection,
      rows: projectionDim,
      cols: width,
    });
    const got = await backend.readOut({
      context,
      out: { weight: float32(out.weight, [width, width]), bias: out.bias },
      postNorm,
      visualProjection: float32(visualProjection, [projectionDim, width]),
    });
    expect(relativeError(values(got.attention), want.attention.data)).toBeLessThan(3e-6);
    expect(relativeError(values(got.embeddings), want.embeddings.data)).toBeLessThan(5e-6);
    expect(got.embeddings.dims).toEqual([rows, projectionDim]);
  });
});
