import { type PruneResult, Pruner } from '../src/index.js';
import { head, tensor } from './data.js';
import { type Benchmark, contestants, LLAVA } from './harness.js';

/**
 * The whole head: float32 hidden states in memory to merged tokens, one image and one question. Its stages are what it runs in place of
 * the listed kernels (native/kernels.h).
 */
export default async function wholeHead(): Promise<Benchmark> {
  const { rows, width, projectionDim, heads, text, keep, patches } = LLAVA;
  const weights = head();
  const [hidden, question] = [tensor(1, rows, width), tensor(2, text, projectionDim)];
  const contenders = await Promise.all(
    contestants().map(async ({ name, options }) => {
      const pruner = await Pruner.load(weights, options);
      return { name, run: () => pruner.pruneSync(hidden, question, { keep }) };
    }),
  );
  const layers = 2 * rows * width * (4 * width + projectionDim);
  const products = 4 * rows * rows * width + 2 * patches * projectionDim * text + 2 * patches * keep * width;
  return {
    name: 'head',
    shape: `${rows} rows, width ${width}, ${heads} heads, ${text} text tokens, ${keep} kept`,
    flops: layers + products,
    contenders,
    stages: (given) => ({ ...(given as PruneResult).timings }),
  };
}
