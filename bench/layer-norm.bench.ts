import { normal, tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function layerNorm(): Benchmark {
  const { tokens, width } = LLAVA;
  const args = { x: tensor(1, tokens, width), weight: normal(2, width), bias: normal(3, width) };
  return {
    name: 'layerNorm',
    shape: `[${tokens}, ${width}]`,
    flops: 0,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.layerNorm(args) })),
  };
}
