import { tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function selfAttention(): Benchmark {
  const { rows, width, heads } = LLAVA;
  const args = { q: tensor(1, rows, width), k: tensor(2, rows, width), v: tensor(3, rows, width), heads };
  return {
    name: 'selfAttention',
    shape: `${rows} rows, ${heads} heads of ${width / heads}, with saliency`,
    flops: 4 * rows * rows * width,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.selfAttention(args) })),
  };
}
