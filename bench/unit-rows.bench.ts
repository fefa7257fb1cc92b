import { tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function unitRows(): Benchmark {
  const { tokens, projectionDim } = LLAVA;
  const x = tensor(1, tokens, projectionDim);
  return {
    name: 'unitRows',
    shape: `[${tokens}, ${projectionDim}]`,
    flops: 0,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.unitRows({ x }) })),
  };
}
