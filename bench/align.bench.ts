import { unitTensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function align(): Benchmark {
  const { patches, text, projectionDim } = LLAVA;
  const args = {
    visual: unitTensor(1, patches, projectionDim),
    text: unitTensor(2, text, projectionDim),
    global: unitTensor(3, 1, projectionDim),
  };
  return {
    name: 'align',
    shape: `fcma, ${patches} patches, ${text} text tokens, width ${projectionDim}`,
    flops: 2 * patches * text * projectionDim,
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.align(args) })),
  };
}
