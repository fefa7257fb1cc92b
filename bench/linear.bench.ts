import { normal, tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

/** The public kernel packs the weight on every call; inside a loaded head it is packed once. */
export default function linear(): Benchmark {
  const { rows, width } = LLAVA;
  const args = { x: tensor(1, rows, width), weight: tensor(2, width, width, 0.03), bias: normal(3, width) };
  return {
    name: 'linear',
    shape: `[${rows}, ${width}] x [${width}, ${width}], weight packed in the call`,
    flops: 2 * rows * width * width,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.linear(args) })),
  };
}
