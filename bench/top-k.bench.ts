import { normal } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function topK(): Benchmark {
  const { patches, keep } = LLAVA;
  const scores = normal(1, patches);
  return {
    name: 'topK',
    shape: `${keep / 2} of ${patches}`,
    flops: 0,
    contenders: contestants().map(({ name, backend }) => ({
      name,
      run: () => backend.sync.topK({ scores, k: keep / 2 }),
    })),
  };
}
