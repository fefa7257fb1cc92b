import { tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function saliency(): Benchmark {
  const { tokens, width, heads } = LLAVA;
  const args = { q: tensor(1, tokens, width), k: tensor(2, tokens, width), heads, classToken: false };
  return {
    name: 'saliency',
    shape: `column mean, ${tokens} tokens, ${heads} heads of ${width / heads}`,
    flops: 2 * tokens * tokens * width,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.saliency(args) })),
  };
}
