import { tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

/** The half of the kept tokens that diversity chooses, from the half that the task scores chose. */
export default function farthestPoints(): Benchmark {
  const { patches, width, keep } = LLAVA;
  const x = tensor(1, patches, width);
  const seeds = Int32Array.from({ length: keep / 2 }, (_, i) => i * (patches / (keep / 2)));
  return {
    name: 'farthestPoints',
    shape: `${keep / 2} of ${patches} rows of ${width}, from ${keep / 2} seeds`,
    flops: 0,
    contenders: contestants().map(({ name, backend }) => ({
      name,
      run: () => backend.sync.farthestPoints({ x, seeds, count: keep / 2 }),
    })),
  };
}
