import { normal, tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function layerNorm(): Benchmark {
  const { rows, width } = LLAVA;
  const args = { x: tensor(1, rows, width), weight: normal(2, width), bias: normal(3, width) };
  return {
    name: 'layerNorm',
    shape: `[${rows}, ${width}]`,
    flops: 0,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.layerNorm(args) })),
  };
}
