import { float32 } from '../src/tensor.js';
import { randomBlock } from '../test/support.js';
import { normal, tensor } from './data.js';
import { type Benchmark, contestants, SIGLIP } from './harness.js';

export default function siglipReadOut(): Benchmark {
  const { patches, width, heads, mlpWidth } = SIGLIP;
  const head = randomBlock(1, { width, heads, norm: 'layer', mlpWidth }).siglip!;
  const dense = ({ weight, bias }: { weight: Float32Array; bias: Float32Array }) => ({
    weight: float32(weight, [bias.length, weight.length / bias.length]),
    bias,
  });
  const args = {
    attention: tensor(1, patches, width),
    postNorm: head.postNorm,
    query: normal(2, width),
    key: dense(head.k),
    value: dense(head.v),
    out: dense(head.out),
    norm: head.norm,
    fc1: dense(head.fc1),
    fc2: dense(head.fc2),
    heads,
  };
  return {
    name: 'siglipReadOut',
    shape: `[${patches}, ${width}], MLP of ${mlpWidth}, weights packed in the call`,
    flops: 2 * patches * width * (3 * width + 2 * mlpWidth),
    contenders: contestants().map(({ name, backend }) => ({ name, run: () => backend.sync.siglipReadOut(args) })),
  };
}
