/** The last block of an encoder without class token, in float64: Block of native/block.h. */
import type { BlockWeights, OptionalBias, SiglipHead } from '../block-weights.js';
import { naming } from '../errors.js';
import { attention } from '../kernels/attention.js';
import type { Encoding, KernelArguments } from '../kernels/kernels.js';
import { layerNorm } from '../kernels/layer-norm.js';
import { linear } from '../kernels/linear.js';
import { type Matrix64, type Numbers, widen } from '../kernels/numeric.js';
import { pool } from '../kernels/pool.js';
import { rmsNorm } from '../kernels/rms-norm.js';
import { saliency } from '../kernels/saliency.js';
import { selfAttention } from '../kernels/self-attention.js';
import { siglipReadOut } from '../kernels/siglip-read-out.js';
import type { BlockOutput, BlockStates, DriverBlock, MaybePromise } from './driver.js';
import { Clock, operands, present, settle, single } from './reference-support.js';

type ReadOut = Omit<KernelArguments['siglipReadOut'], 'attention'>;

export class ReferenceBlock implements DriverBlock {
  readonly #siglip: ReadOut | null;

  /** `use` fails once the device is disposed. */
  constructor(
    private readonly weights: BlockWeights,
    private readonly use: () => void,
  ) {
    this.#siglip = weights.siglip && readOutOf(weights, weights.siglip);
  }

  analyze(images: readonly BlockStates[], encoding: Encoding, sync: boolean): MaybePromise<BlockOutput[]> {
    this.use();
    return settle(sync, () =>
      images.map((states, index) => this.#one(present(states), encoding, images.length > 1 ? index : undefined)),
    );
  }

  #one(
    { hidden, rotary, unit, units, attention: place, selfAttention: ownPlace }: BlockStates,
    encoding: Encoding,
    image?: number,
  ): BlockOutput {
    const { heads } = this.weights;
    const clock = new Clock();
    const X = widen(hidden);
    const L = naming('hidden', () => this.#normalized(X), image);
    const normalize = clock.lap();
    const [q, k, v] = [this.weights.q, this.weights.k, this.weights.v].map((layer) => dense(L, layer));
    const project = clock.lap();
    // Neither operand is rotated: likeness of content, wherever it stands.
    const wanted = place !== null || this.#siglip !== null;
    const A = wanted ? dense(attention(...operands(encoding, q, k, v), v, heads), this.weights.out) : null;
    if (A) place?.set(A.data);
    const attended = clock.lap();
    const own = ownPlace && selfAttention(q, k, v, heads, rotary);
    if (own) ownPlace.set(dense(own.context, this.weights.out).data);
    const A_s = own ? own.saliency : saliency(q, k, heads, false, rotary);
    const unitSaliency = unit && single(pool(A_s, unit, units));
    const salient = clock.lap();
    const siglip = A && this.#siglip && readOut(A, this.#siglip, image);
    const timings = { waiting: 0, normalize, project, attention: attended, saliency: salient, readOut: clock.lap() };
    return { saliency: single(A_s), unitSaliency, siglip, timings };
  }

  #normalized(X: Matrix64): Matrix64 {
    const { norm, norm1, epsilon, width } = this.weights;
    if (norm === 'rms') return rmsNorm(X, norm1.weight, epsilon);
    return layerNorm(X, norm1.weight, norm1.bias ?? new Float32Array(width), epsilon);
  }

  dispose() {}
}

/** Arguments of SigLIP's read-out: the head with its probe behind the projection. */
function readOutOf({ width, heads, epsilon }: BlockWeights, head: SiglipHead): ReadOut {
  const { probe, q, k: key, v: value, postNorm, out, norm, fc1, fc2 } = head;
  const query = single(dense({ data: probe, rows: 1, cols: width }, q).data);
  return { postNorm, query, key, value, out, norm, fc1, fc2, heads, epsilon };
}

function readOut(A: Matrix64, head: ReadOut, image?: number): BlockOutput['siglip'] {
  const read = naming('hidden', () => siglipReadOut(A, head), image);
  return {
    embeddings: single(read.embeddings.data),
    global: single(read.global),
    probeSaliency: single(read.saliency),
  };
}

const dense = (x: { data: Numbers; rows: number; cols: number }, { weight, bias }: OptionalBias) =>
  linear(x, { data: weight, rows: weight.length / x.cols, cols: x.cols }, bias);
