import { afterAll, describe, expect, it } from 'vitest';
import { linear } from '../../src/kernels/linear.js';
import { float32, floatToHalf, Tensor } from '../../src/tensor.js';
import { backendsUnderTest, normal, normalTensor, relativeError, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

describe.each(backends)('linear on %s', (_, backend) => {
  // A GPU splits operands into two float16 numbers each: 22 bits, counted from the largest element.
  const split = backend.device.startsWith('cuda');
  const tolerance = split ? 1e-5 : 3e-6;

  it('is x W^T + b', () => {
    const y = backend.sync.linear({
      x: float32(Float32Array.of(1, 2, 3, 4), [2, 2]),
      weight: float32(Float32Array.of(1, 0, 0, 1, 1, 1), [3, 2]),
      bias: Float32Array.of(10, 20, 30),
    });
    expect([...values(y)]).toEqual([11, 22, 33, 13, 24, 37]);
    expect(y.dims).toEqual([2, 3]);
  });

  it.each([
    [1, 1, 1],
    [2, 3, 5],
    [33, 17, 65],
    [97, 80, 130],
    [145, 257, 96],
    [65, 2500, 70],
  ])('agrees with float64 at [%i, %i] x [%i]', async (rows, cols, outputs) => {
    const [x, weight, bias] = [normalTensor(1, rows, cols), normalTensor(2, outputs, cols), normal(3, outputs)];
    const exact = linear({ data: values(x), rows, cols }, { data: values(weight), rows: outputs, cols }, bias).data;
    expect(relativeError(values(await backend.linear({ x, weight, bias })), exact)).toBeLessThan(tolerance);
    const plain = linear({ data: values(x), rows, cols }, { data: values(weight), rows: outputs, cols }, null).data;
    expect(relativeError(values(backend.sync.linear({ x, weight })), plain)).toBeLessThan(tolerance);
  });

  it('reads float16 as its exact values', () => {
    const numbers = [0, -0, 1, -2.5, 65504, 2 ** -24, 2 ** -14, 1 / 3];
    const x = new Tensor('float16', Uint16Array.from(numbers, floatToHalf), [8, 1]);
    const y = values(backend.sync.linear({ x, weight: float32(Float32Array.of(1), [1, 1]) }));
    const exact = [0, 0, 1, -2.5, 65504, 2 ** -24, 2 ** -14, 0.333251953125];
    if (split) expect(relativeError(y, exact)).toBeLessThan(1e-7);
    else expect([...y]).toEqual(exact);
  });
});
