import { normal } from './data.js';
import { type Benchmark, contestants, QWEN } from './harness.js';

export default function pool(): Benchmark {
  const { patches, side } = QWEN;
  const args = {
    scores: normal(1, patches),
    unit: Int32Array.from({ length: patches }, (_, i) => Math.floor(i / side ** 2)),
  };
  return {
    name: 'pool',
    shape: `${patches} patches, ${side ** 2} of each unit`,
    flops: 0,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.pool(args) })),
  };
}
