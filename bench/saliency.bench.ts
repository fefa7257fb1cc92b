import { tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function saliency(): Benchmark {
  const { rows, width, heads } = LLAVA;
  const args = { q: tensor(1, rows, width), k: tensor(2, rows, width), heads, classToken: false };
  return {
    name: 'saliency',
    shape: `column mean, ${rows} rows, ${heads} heads of ${width / heads}`,
    flops: 2 * rows * rows * width,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.saliency(args) })),
  };
}
