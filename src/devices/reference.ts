/**
 * The JavaScript reference: float64 arithmetic, textbook loops, runs anywhere. It is what every other backend is held
 * against. It computes on the calling thread, also when called asynchronously.
 */
import { naming, notFinite } from '../errors.js';
import { copyHead, type HeadWeights, type LinearWeights } from '../head.js';
import { type AlignResult, align } from '../kernels/align.js';
import { attention } from '../kernels/attention.js';
import type { AlignmentMatrices, KernelArguments, KernelName, KernelResults } from '../kernels/kernels.js';
import { layerNorm } from '../kernels/layer-norm.js';
import { linear } from '../kernels/linear.js';
import { merge } from '../kernels/merge.js';
import {
  type Matrix64,
  matrix64,
  type NumberMatrix,
  type Numbers,
  row,
  rows,
  sumOfRows,
  widen,
} from '../kernels/numeric.js';
import { readOut } from '../kernels/read-out.js';
import { saliency } from '../kernels/saliency.js';
import { select } from '../kernels/select.js';
import { topK } from '../kernels/top-k.js';
import { unitRows } from '../kernels/unit-rows.js';
import { assertAlive, type FloatMatrix, floatToHalf } from '../tensor.js';
import type {
  AnalyzeRequest,
  Driver,
  DriverAnalysis,
  DriverHead,
  DriverParts,
  MaybePromise,
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
    return { attention: single(result.attention.data), embeddings: single(result.embeddings.data) };
  },
  align: ({ visual, text, endOfText, global, alignment, lambda, matrices: wanted }) => {
    const aligned = align(widen(visual), widen(text), endOfText, global, alignment, lambda);
    return { task: single(aligned.task), matrices: wanted ? matrices(aligned) : null };
  },
  topK: ({ scores, k, excluded }) => topK(scores, k, excluded),
  select: ({ task, saliency, keep, taskKeep }) => select(task, saliency, keep, taskKeep),
  merge: ({ features, kept }) => {
    const { tokens, assignment, counts } = naming('features', () => merge(widen(features), kept));
    return { tokens: single(tokens.data), assignment, counts };
  },
};

/** Settles like a native call: a value or an exception when synchronous, a promise otherwise. */
function settle<T>(sync: boolean, compute: () => T): MaybePromise<T> {
  return sync ? compute() : new Promise((resolve) => resolve(compute()));
}

export function createReferenceDriver(): Driver {
  let alive = true;
  const use = () => assertAlive('device', alive);
  return {
    device: 'reference',
    deviceDescription: 'JavaScript reference, float64',
    precision: 'fp32',
    run: (kernel, args, sync) => {
      use();
      return settle(sync, () => KERNELS[kernel](args));
    },
    createHead: async (weights) => {
      use();
      return new ReferenceHead(copyHead(weights), use);
    },
    createAnalysis: (parts, sync) => {
      use();
      return settle(sync, () => fromParts(parts, use));
    },
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
  /** `use` fails once the device is disposed. */
  constructor(
    private readonly weights: HeadWeights,
    private readonly use: () => void,
  ) {}

  analyze(images: readonly FloatMatrix[], request: AnalyzeRequest, sync: boolean): MaybePromise<DriverAnalysis[]> {
    this.use();
    return settle(sync, () =>
      images.map((hidden, index) => this.#one(hidden, request, images.length > 1 ? index : undefined)),
    );
  }

  prune(
    images: readonly FloatMatrix[],
    { encoding }: Pick<AnalyzeRequest, 'encoding'>,
    requests: readonly PruneRequest[],
    sync: boolean,
  ): MaybePromise<PruneOutput[]> {
    this.use();
    return settle(sync, () =>
      images.map((hidden, index) => {
        const image = images.length > 1 ? index : undefined;
        return this.#one(hidden, { encoding, intermediates: false }, image).ask(requests[index], image);
      }),
    );
  }

  #one(hidden: FloatMatrix, request: AnalyzeRequest, image?: number): ReferenceAnalysis {
    const { width, heads, epsilon, ln1, postNorm, out, projectionDim, visualProjection, classToken } = this.weights;
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
    const projection: NumberMatrix = { data: visualProjection, rows: projectionDim, cols: width };
    const read = readOut(context, out, postNorm, epsilon, projection);
    const timings = { normalize, project: projected, attention: attended, saliency: salient, readOut: clock.lap() };
    const intermediates = request.intermediates
      ? { context: single(context.data), attention: single(read.attention.data) }
      : null;
    const skipped = Number(classToken);
    const patchEmbeddings = rows(read.embeddings, skipped, X.rows);
    const known = {
      rows: X.rows,
      patchEmbeddings,
      global: classToken ? row(read.embeddings, 0) : meanDirection(patchEmbeddings),
      saliency: A_s,
      features: rows(X, skipped, X.rows),
      half: hidden.half,
      intermediates,
      timings,
    };
    return new ReferenceAnalysis(known, this.use);
  }

  dispose() {}
}

/** What one image is asked with. Symbols as in the paper: A_d, v_s, A_s. */
interface Known {
  readonly rows: number;
  readonly patchEmbeddings: Matrix64;
  readonly global: Float64Array;
  readonly saliency: Numbers;
  readonly features: Matrix64;
  /** Whether the features were float16, as the tokens will be. */
  readonly half: boolean;
  readonly intermediates: { context: Float32Array; attention: Float32Array } | null;
  readonly timings: DriverAnalysis['timings'];
}

/** An analysis of parts that another encoder made. */
function fromParts({ patchEmbeddings, global, saliency, features }: DriverParts, use: () => void): ReferenceAnalysis {
  const unit = naming('patchEmbeddings', () => unitRows(widen(patchEmbeddings)));
  const whole = global === null ? meanDirection(unit) : naming('global', () => unitVector(global));
  const bad = saliency.findIndex((score) => !Number.isFinite(score));
  if (bad >= 0) throw notFinite('saliency', bad);
  const wide = widen(features);
  naming('features', () => unitRows(wide));
  const known = {
    rows: unit.rows,
    patchEmbeddings: unit,
    global: whole,
    saliency: saliency.slice(),
    features: wide,
    half: features.half,
    intermediates: null,
    timings: { normalize: 0, project: 0, attention: 0, saliency: 0, readOut: 0 },
  };
  return new ReferenceAnalysis(known, use);
}

class ReferenceAnalysis implements DriverAnalysis {
  readonly featuresAddress = 0n;
  readonly rows: number;
  readonly patches: number;
  readonly width: number;
  readonly projectionDim: number;
  readonly timings: DriverAnalysis['timings'];

  constructor(
    private readonly known: Known,
    private readonly use: () => void,
  ) {
    this.rows = known.rows;
    this.patches = known.features.rows;
    this.width = known.features.cols;
    this.projectionDim = known.patchEmbeddings.cols;
    this.timings = known.timings;
  }

  patchEmbeddings = () => single(this.known.patchEmbeddings.data);
  global = () => single(this.known.global);
  saliency = () => single(this.known.saliency);
  intermediates = () => this.known.intermediates;
  dispose() {}

  prune(request: PruneRequest, sync: boolean): MaybePromise<PruneOutput> {
    this.use();
    return settle(sync, () => this.ask(request));
  }

  /** A pruning; `image` is which one of a call it is, for errors. */
  ask(request: PruneRequest, image?: number): PruneOutput {
    const { keep, taskKeep } = request;
    const clock = new Clock();
    const aligned = request.text && this.#align(request.text, request, image);
    const alignTime = aligned ? clock.lap() : 0;
    const salient = request.saliency ?? this.known.saliency;
    const { indices, source } = naming('saliency', () => select(aligned?.task ?? null, salient, keep, taskKeep), image);
    const selectTime = clock.lap();
    const features = request.features === null ? this.known.features : widen(request.features);
    const combine = request.merge ? merge : unmerged;
    const { tokens, assignment, counts } = naming('features', () => combine(features, indices), image);
    const half = request.features === null ? this.known.half : request.features.half;
    return {
      tokens: half ? Uint16Array.from(tokens.data, floatToHalf) : single(tokens.data),
      indices,
      source,
      assignment,
      counts,
      maps: request.maps ? { task: aligned && single(aligned.task), saliency: single(salient) } : null,
      matrices: request.matrices && aligned ? matrices(aligned) : null,
      timings: { ...this.timings, align: alignTime, select: selectTime, merge: clock.lap() },
    };
  }

  #align(given: FloatMatrix, { endOfText, alignment, lambda }: PruneRequest, image?: number): AlignResult {
    const text = naming('text', () => unitRows(widen(given)), image);
    const last =
      typeof endOfText === 'number' ? row(text, endOfText) : naming('endOfText', () => unitVector(endOfText), image);
    return align(this.known.patchEmbeddings, text, last, this.known.global, alignment, lambda);
  }
}

function unitVector(x: Numbers): Float64Array {
  return unitRows({ data: x, rows: 1, cols: x.length }).data;
}

/** The direction of the rows' mean. */
function meanDirection(x: Matrix64): Float64Array {
  return unitVector(sumOfRows(x).map((sum) => sum / x.rows));
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
