import { tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function attention(): Benchmark {
  const { rows, width, heads } = LLAVA;
  const q = tensor(1, rows, width);
  const args = { q, k: q, v: tensor(2, rows, width), heads };
  return {
    name: 'attention',
    shape: `qq, ${rows} rows, ${heads} heads of ${width / heads}`,
    flops: 4 * rows * rows * width,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.attention(args) })),
  };
}
