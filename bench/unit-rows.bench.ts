import { tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function unitRows(): Benchmark {
  const { tokens, embedding } = LLAVA;
  const x = tensor(1, tokens, embedding);
  return {
    name: 'unitRows',
    shape: `[${tokens}, ${embedding}]`,
    flops: 0,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.unitRows({ x }) })),
  };
}
