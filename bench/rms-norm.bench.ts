import { normal, tensor } from './data.js';
import { type Benchmark, contestants, QWEN } from './harness.js';

export default function rmsNorm(): Benchmark {
  const { patches, width } = QWEN;
  const args = { x: tensor(1, patches, width), weight: normal(2, width) };
  return {
    name: 'rmsNorm',
    shape: `[${patches}, ${width}]`,
    flops: 0,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.rmsNorm(args) })),
  };
}
