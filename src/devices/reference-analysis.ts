/** What is known of one image, and its prunings, in float64: Analysis of native/head.h. */
import { naming, notFinite, ofImage } from '../errors.js';
import { type AlignResult, align } from '../kernels/align.js';
import { farthestPoints, mostDistant } from '../kernels/farthest-points.js';
import type { AlignmentMatrices } from '../kernels/kernels.js';
import { merge } from '../kernels/merge.js';
import { type Matrix64, matrix64, type Numbers, row, sumOfRows, widen } from '../kernels/numeric.js';
import { select } from '../kernels/select.js';
import { unitRows } from '../kernels/unit-rows.js';
import { type FloatMatrix, floatToHalf } from '../tensor.js';
import type { DriverAnalysis, DriverParts, MaybePromise, PruneOutput, PruneRequest } from './driver.js';
import { Clock, present, settle, single } from './reference-support.js';

export function matrices(aligned: AlignResult): AlignmentMatrices {
  return {
    similarity: single(aligned.similarity),
    visualAlignment: aligned.visualAlignment && single(aligned.visualAlignment),
    textAlignment: aligned.textAlignment && single(aligned.textAlignment),
  };
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
export function fromParts(
  { patchEmbeddings, global, saliency, features }: DriverParts,
  use: () => void,
): ReferenceAnalysis {
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
    timings: { waiting: 0, normalize: 0, project: 0, attention: 0, saliency: 0, readOut: 0 },
  };
  return new ReferenceAnalysis(known, use);
}

export class ReferenceAnalysis implements DriverAnalysis {
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
    return settle(sync, () => this.ask(present(request)));
  }

  /** A pruning; `image` is which one of a call it is, for errors. */
  ask(request: PruneRequest, image?: number): PruneOutput {
    const { keep, taskKeep } = request;
    const clock = new Clock();
    const aligned = request.text && this.#align(request.text, request, image);
    const alignTime = aligned ? clock.lap() : 0;
    const task = request.task ?? aligned?.task ?? null;
    const salient = request.saliency ?? this.known.saliency;
    const features = request.features === null ? this.known.features : widen(request.features);
    const isDiverse = request.complement === 'diversity';
    const chosen = ofImage(image, () => select(task, salient, isDiverse ? taskKeep : keep, taskKeep));
    const { indices, source } = isDiverse ? completed(chosen.indices, request, features, image) : chosen;
    const selectTime = clock.lap();
    const combine = request.merge ? merge : unmerged;
    const { tokens, assignment, counts } = naming('features', () => combine(features, indices), image);
    const half = request.features === null ? this.known.half : request.features.half;
    return {
      tokens: half ? Uint16Array.from(tokens.data, floatToHalf) : single(tokens.data),
      indices,
      source,
      assignment,
      counts,
      maps: request.maps ? { task: task && single(task), saliency: single(salient) } : null,
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

/** What the task scores chose, and the farthest points from it; where they chose nothing, from the most distant row on. */
function completed(byTask: Int32Array, { keep, distances }: PruneRequest, merged: Matrix64, image?: number) {
  const rows = distances === null ? merged : widen(distances);
  const name = distances === null ? 'features' : 'distances';
  const count = keep - byTask.length;
  const farthest = () => {
    if (byTask.length > 0) return farthestPoints(rows, byTask, count);
    const first = mostDistant(rows);
    return [first, ...farthestPoints(rows, Int32Array.of(first), count - 1)];
  };
  const others = count === 0 ? [] : naming(name, farthest, image);
  const indices = Int32Array.from([...byTask, ...others]).sort();
  return { indices, source: Uint8Array.from(indices, (index) => (byTask.includes(index) ? 0 : 1)) };
}

function unitVector(x: Numbers): Float64Array {
  return unitRows({ data: x, rows: 1, cols: x.length }).data;
}

/** The direction of the rows' mean. */
export function meanDirection(x: Matrix64): Float64Array {
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
