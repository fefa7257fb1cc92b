import { float32 } from '../src/tensor.js';
import { head, tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

export default function readOut(): Benchmark {
  const { rows, width, projectionDim } = LLAVA;
  const { out, postNorm, visualProjection } = head();
  const args = {
    context: tensor(1, rows, width),
    out: { weight: float32(out.weight, [width, width]), bias: out.bias },
    postNorm,
    visualProjection: float32(visualProjection, [projectionDim, width]),
  };
  return {
    name: 'readOut',
    shape: `[${rows}, ${width}] to [${rows}, ${projectionDim}], weights packed in the call`,
    flops: 2 * rows * width * (width + projectionDim),
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.readOut(args) })),
  };
}
