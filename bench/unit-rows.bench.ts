import { tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function unitRows(): Benchmark {
  const { rows, projectionDim } = LLAVA;
  const x = tensor(1, rows, projectionDim);
  return {
    name: 'unitRows',
    shape: `[${rows}, ${projectionDim}]`,
    flops: 0,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.unitRows({ x }) })),
  };
}
