/**
 * The JavaScript reference: float64 arithmetic, textbook loops, runs anywhere. It is what every other backend is held
 * against. It computes on the calling thread, also when called asynchronously.
 */
import { notFinite } from '../errors.js';
import type { HeadWeights, LinearWeights } from '../head.js';
import { type AlignResult, align } from '../kernels/align.js';
import { attention } from '../kernels/attention.js';
import type { AlignmentMatrices, KernelArguments, KernelName, KernelResults } from '../kernels/kernels.js';
import { layerNorm } from '../kernels/layer-norm.js';
import { linear } from '../kernels/linear.js';
import { merge } from '../kernels/merge.js';
import { type Matrix64, matrix64, type NumberMatrix, type Numbers, row, rows, widen } from '../kernels/numeric.js';
import { readOut } from '../kernels/read-out.js';
import { saliency } from '../kernels/saliency.js';
import { topK } from '../kernels/top-k.js';
import { unitRows } from '../kernels/unit-rows.js';
import { assertAlive, type FloatMatrix, floatToHalf } from '../tensor.js';
import type {
  AnalyzeRequest,
  Driver,
  DriverAnalysis,
  DriverHead,
  MaybePromise,
  PruneAllOutput,
  PruneAllRequest,
  PruneOutput,
  PruneRequest,
} from './driver.js';

const single = (x: Numbers) => Float32Array.from(x);

function matrices(aligned: AlignResult): AlignmentMatrices {
  return {
    similarity: single(aligned.similarity),
    visualAlignment: aligned.visualAlignment && single(aligned.visualAlignment),
    textAlignment: aligned.textAlignment && single(aligned.textAlignment),
  };
}

const KERNELS: { [K in KernelName]: (args: KernelArguments[K]) => KernelResults[K] } = {
  layerNorm: ({ x, weight, bias, epsilon }) => single(layerNorm(widen(x), weight, bias, epsilon).data),
  linear: ({ x, weight, bias }) => single(linear(widen(x), widen(weight), bias).data),
  attention: ({ q, k, v, heads }) => single(attention(widen(q), widen(k), widen(v), heads).data),
  saliency: ({ q, k, heads, classToken }) => single(saliency(widen(q), widen(k), heads, classToken)),
  unitRows: ({ x }) => single(unitRows(widen(x)).data),
  readOut: ({ context, out, postNorm, epsilon, visualProjection }) => {
    const result = readOut(widen(context), out, postNorm, epsilon, widen(visualProjection));
    return { attention: single(result.attention.data), embedding: single(result.embedding.data) };
  },
  align: ({ visual, text, query, global, alignment, lambda, matrices: wanted }) => {
    const aligned = align(widen(visual), widen(text), query, global, alignment, lambda);
    return { task: single(aligned.task), matrices: wanted ? matrices(aligned) : null };
  },
  topK: ({ scores, k, excluded }) => topK(scores, k, excluded),
  merge: ({ features, kept }) => {
    const { tokens, assignment, counts } = naming('features', () => merge(widen(features), kept));
    return { tokens: single(tokens.data), assignment, counts };
  },
};

/** Settles like a native call: a value or an exception when synchronous, a promise otherwise. */
function settle<T>(sync: boolean, compute: () => T): MaybePromise<T> {
  return sync ? compute() : new Promise((resolve) => resolve(compute()));
}

/** Runs a step, giving its data errors the caller's name for the input. */
function naming<T>(argument: string, step: () => T, image?: number): T {
  try {
    return step();
  } catch (error) {
    const { row } = error as { row?: number };
    throw row === undefined ? error : notFinite(argument, row, image);
  }
}

export function createReferenceDriver(): Driver {
  let alive = true;
  const run: Driver['run'] = (kernel, args, sync) => {
    assertAlive('Backend', alive);
    return settle(sync, () => KERNELS[kernel](args));
  };
  return {
    kind: 'reference',
    description: 'JavaScript reference, float64',
    precision: 'float64',
    run,
    createHead: async (weights) => new ReferenceHead(weights),
    dispose: () => {
      alive = false;
    },
  };
}

class Clock {
  #last = performance.now();
  /** Milliseconds since the last lap. */
  lap(): number {
    const now = performance.now();
    const elapsed = now - this.#last;
    this.#last = now;
    return elapsed;
  }
}

class ReferenceHead implements DriverHead {
  constructor(private readonly weights: HeadWeights) {}

  analyze(images: readonly FloatMatrix[], request: AnalyzeRequest, sync: boolean): MaybePromise<DriverAnalysis[]> {
    return settle(sync, () =>
      images.map((hidden, index) => this.#one(hidden, request, images.length > 1 ? index : undefined)),
    );
  }

  prune(
    images: readonly FloatMatrix[],
    requests: readonly PruneRequest[],
    { encoding, maps }: PruneAllRequest,
    sync: boolean,
  ): MaybePromise<PruneAllOutput[]> {
    return settle(sync, () =>
      images.map((hidden, index) => {
        const image = images.length > 1 ? index : undefined;
        const analysis = this.#one(hidden, { encoding, intermediates: false }, image);
        const output = analysis.question(requests[index], image);
        const timings = { ...analysis.timings, ...output.timings };
        return { ...output, timings, saliency: maps ? analysis.saliency() : null };
      }),
    );
  }

  #one(hidden: FloatMatrix, request: AnalyzeRequest, image?: number): ReferenceAnalysis {
    const { width, heads, epsilon, ln1, postNorm, out, embedding, visualProjection, classToken } = this.weights;
    const clock = new Clock();
    const X = widen(hidden);
    const L = naming('hidden', () => layerNorm(X, ln1.weight, ln1.bias, epsilon), image);
    const normalize = clock.lap();
    const project = (layer: LinearWeights) => linear(L, { data: layer.weight, rows: width, cols: width }, layer.bias);
    const [q, k, v] = [project(this.weights.q), project(this.weights.k), project(this.weights.v)];
    const projected = clock.lap();
    const operands: Record<AnalyzeRequest['encoding'], [Matrix64, Matrix64]> = {
      qq: [q, q],
      kk: [k, k],
      vv: [v, v],
      qk: [q, k],
    };
    const context = attention(...operands[request.encoding], v, heads);
    const attended = clock.lap();
    const A_s = saliency(q, k, heads, classToken);
    const salient = clock.lap();
    const projection: NumberMatrix = { data: visualProjection, rows: embedding, cols: width };
    const read = readOut(context, out, postNorm, epsilon, projection);
    const timings = { normalize, project: projected, attention: attended, saliency: salient, readOut: clock.lap() };
    const kept = request.intermediates
      ? { context: single(context.data), attention: single(read.attention.data) }
      : null;
    const features = classToken ? rows(X, 1, X.rows) : X;
    return new ReferenceAnalysis(read.embedding, A_s, features, hidden.half, classToken, kept, timings);
  }

  dispose() {}
}

class ReferenceAnalysis implements DriverAnalysis {
  readonly featuresAddress = 0n;
  constructor(
    private readonly A_d: Matrix64,
    private readonly A_s: Float64Array,
    private readonly features: Matrix64,
    private readonly half: boolean,
    private readonly classToken: boolean,
    private readonly kept: { context: Float32Array; attention: Float32Array } | null,
    readonly timings: DriverAnalysis['timings'],
  ) {}

  get tokens() {
    return this.A_d.rows;
  }
  get patches() {
    return this.features.rows;
  }
  get width() {
    return this.features.cols;
  }
  embedding = () => single(this.A_d.data);
  saliency = () => single(this.A_s);
  intermediates = () => this.kept;
  dispose() {}

  prune(request: PruneRequest, sync: boolean): MaybePromise<PruneOutput> {
    return settle(sync, () => this.question(request));
  }

  question(request: PruneRequest, image?: number): PruneOutput {
    const { keep, taskKeep } = request;
    const clock = new Clock();
    const visual = this.classToken ? rows(this.A_d, 1, this.A_d.rows) : this.A_d;
    const text = naming('text', () => unitRows(widen(request.text)), image);
    const query =
      request.query === null ? row(text, request.endOfText) : naming('query', () => unitVector(request.query!), image);
    const global = this.classToken ? row(this.A_d, 0) : unitVector(meanRow(visual));
    const aligned = align(visual, text, query, global, request.alignment, request.lambda);
    const alignTime = clock.lap();

    const salient = request.saliency ?? this.A_s;
    const byTask = topK(aligned.task, taskKeep, null);
    const taken = new Uint8Array(visual.rows);
    for (const i of byTask) taken[i] = 1;
    const bySaliency = naming('saliency', () => topK(salient, keep - taskKeep, taken), image);
    const indices = Int32Array.from([...byTask, ...bySaliency]).sort();
    const source = Uint8Array.from(indices, (i) => (taken[i] ? 0 : 1));
    const topKTime = clock.lap();

    const features = request.features === null ? this.features : widen(request.features);
    const combine = request.merge ? merge : unmerged;
    const merged = naming('features', () => combine(features, indices), image);
    const half = request.features === null ? this.half : request.features.half;
    const tokens = half ? Uint16Array.from(merged.tokens.data, floatToHalf) : single(merged.tokens.data);
    return {
      tokens,
      indices,
      source,
      assignment: merged.assignment,
      counts: merged.counts,
      task: single(aligned.task),
      matrices: request.matrices ? matrices(aligned) : null,
      timings: { align: alignTime, topK: topKTime, merge: clock.lap() },
    };
  }
}

function unitVector(x: Numbers): Float64Array {
  return unitRows({ data: x, rows: 1, cols: x.length }).data;
}

function meanRow(x: Matrix64): Float64Array {
  const mean = new Float64Array(x.cols);
  for (let i = 0; i < x.rows; i++) for (let c = 0; c < x.cols; c++) mean[c] += x.data[i * x.cols + c] / x.rows;
  return mean;
}

/** The kept rows as they are; a dropped patch belongs to no token (-1). */
function unmerged(features: Matrix64, indices: Int32Array) {
  const tokens = matrix64(indices.length, features.cols);
  const assignment = new Int32Array(features.rows).fill(-1);
  indices.forEach((patch, k) => {
    const from = row(features, patch);
    if (from.some((value) => !Number.isFinite(value))) throw notFinite('features', patch);
    row(tokens, k).set(from);
    assignment[patch] = k;
  });
  return { tokens, assignment, counts: new Int32Array(indices.length).fill(1) };
}
