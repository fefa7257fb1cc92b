import { tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function merge(): Benchmark {
  const { patches, width, keep } = LLAVA;
  const features = tensor(1, patches, width);
  const kept = Int32Array.from({ length: keep }, (_, i) => i * (patches / keep));
  return {
    name: 'merge',
    shape: `${patches} rows of ${width} into ${keep}`,
    flops: 2 * patches * keep * width,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.merge({ features, kept }) })),
  };
}
