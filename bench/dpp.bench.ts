import { normal, tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function dpp(): Benchmark {
  const { patches, width, keep } = LLAVA;
  const x = tensor(1, patches, width);
  const relevance = normal(2, patches).map((g) => 0.01 + Math.abs(g));
  return {
    name: 'dpp',
    shape: `${keep} of ${patches} rows of ${width}`,
    flops: 0,
    contenders: contestants().map(({ name, backend }) => ({
      name,
      run: () => backend.sync.dpp({ x, relevance, count: keep }),
    })),
  };
}
