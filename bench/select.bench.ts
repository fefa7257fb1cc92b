import { normal } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function select(): Benchmark {
  const { patches, keep } = LLAVA;
  const [task, saliency] = [normal(1, patches), normal(2, patches)];
  return {
    name: 'select',
    shape: `${keep / 2} and ${keep / 2} of ${patches}`,
    flops: 0,
    contenders: contestants().map(({ name, backend }) => ({
      name,
      run: () => backend.sync.select({ task, saliency, keep, taskKeep: keep / 2 }),
    })),
  };
}
