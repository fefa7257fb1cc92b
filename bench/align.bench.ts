import { unitTensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function align(): Benchmark {
  const { patches, text, embedding } = LLAVA;
  const args = {
    visual: unitTensor(1, patches, embedding),
    text: unitTensor(2, text, embedding),
    global: unitTensor(3, 1, embedding),
  };
  return {
    name: 'align',
    shape: `fcma, ${patches} patches, ${text} text tokens, width ${embedding}`,
    flops: 2 * patches * text * embedding,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.align(args) })),
  };
}
