import { tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function attention(): Benchmark {
  const { tokens, width, heads } = LLAVA;
  const q = tensor(1, tokens, width);
  const args = { q, k: q, v: tensor(2, tokens, width), heads };
  return {
    name: 'attention',
    shape: `qq, ${tokens} tokens, ${heads} heads of ${width / heads}`,
    flops: 4 * tokens * tokens * width,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.attention(args) })),
  };
}
