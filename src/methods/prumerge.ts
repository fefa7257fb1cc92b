/**
 * PruMerge+: patches by the class attention of the last block, taken as one head of width D, and as many on a grid over the others. Each kept
 * one gathers the patches whose keys are nearest to its own, weighted by their attention; a patch may be gathered by several, so that
 * nothing is assigned.
 */
import { boolean, finite, integer } from '../tensor.js';
import { hasAggregate, withAggregate, withoutAggregate } from './aggregate.js';
import { addTo, cosines, type Matrix, rowsOf } from './matrix.js';
import { method } from './method.js';
import { descending, others, outlierBound } from './ranks.js';
import { TappedBlock } from './tapped.js';

export interface PruMergeOptions {
  /** Share of K that the attention chooses, from 0 to 1; the grid chooses the rest. Default 0.5. */
  readonly attentionShare?: number;
  /** How many patches each kept one gathers; default P / 18, rounded, at least 1. */
  readonly neighbours?: number;
  /** true: one of the K tokens is the sum of what is dropped, weighted by attention; default false. */
  readonly aggregate?: boolean;
  /** true: outliers of the attention are kept, and a grid over the rest, and `keep` has no say; default false. */
  readonly adaptive?: boolean;
}

export const prumerge = method<PruMergeOptions>(
  { attentionShare: true, neighbours: true, aggregate: true, adaptive: true },
  ({ attentionShare = 0.5, neighbours, aggregate = false, adaptive = false }) => {
    finite('attentionShare', attentionShare, 0, 1);
    if (neighbours !== undefined) integer('neighbours', neighbours, 1, 2 ** 31 - 1);
    boolean('aggregate', aggregate);
    boolean('adaptive', adaptive);
    return {
      taps: ['last'],
      isAsked: false,
      isAdaptive: adaptive,
      async choose(image, keep) {
        const X = image.states();
        const P = X.rows;
        const tap = await TappedBlock.of(image, 'last');
        const [attention, keys] = [await tap.attention(1), await tap.keys()];
        const isOne = hasAggregate(aggregate, keep, P);
        const chosen = adaptive ? outliers(attention) : fixed(attention, keep - Number(isOne), attentionShare);
        const isGathered = adaptive ? aggregate && chosen.length < P : isOne;
        const patches = chosen.map(({ patch }) => patch);
        const gridded = new Set(chosen.filter(({ isOfGrid }) => isOfGrid).map(({ patch }) => patch));
        const source = (patch: number) => Number(gridded.has(patch));
        const kept = Int32Array.from(patches).sort();
        const count = Math.min(neighbours ?? Math.max(1, Math.floor(P / 18 + 0.5)), P - 1);
        const tokens = await image.timed('merge', async () => {
          const near = await cosines(image.backend, rowsOf(keys, kept), keys);
          return gathered(X, kept, { near, attention, count });
        });
        const scores = { saliency: attention };
        return isGathered
          ? withAggregate(tokens, X, { patches, source }, (patch) => attention[patch], scores)
          : withoutAggregate(tokens, X, { patches, source }, scores);
      },
    };
  },
);

interface Chosen {
  readonly patch: number;
  readonly isOfGrid: boolean;
}

/** The largest by attention, then at even distances of the rest. */
function fixed(attention: Float64Array, keep: number, share: number): Chosen[] {
  const top = descending(attention, Math.floor(keep * share + 0.5));
  const rest = others(attention.length, top);
  const k2 = keep - top.length;
  const grid = Array.from({ length: k2 }, (_, j) => rest[Math.floor(((2 * j + 1) * rest.length) / (2 * k2))]);
  return listed(top, grid);
}

/** The outliers of the attention, and each n-th patch of the others: the more outliers, the closer. */
function outliers(attention: Float64Array): Chosen[] {
  const P = attention.length;
  const bound = outlierBound(attention);
  const n = Math.max(1, attention.filter((one) => one > bound).length);
  const top = descending(attention, n);
  const step = Math.max(1, Math.floor(Math.floor(P / n) / 3));
  const grid: number[] = [];
  for (let patch = 0; patch < P - 1; patch += step) if (!top.includes(patch)) grid.push(patch);
  return listed(top, grid);
}

function listed(top: Iterable<number>, grid: readonly number[]): Chosen[] {
  const of = (isOfGrid: boolean) => (patch: number) => ({ patch, isOfGrid });
  return [...[...top].map(of(false)), ...grid.map(of(true))];
}

/** x_i + sum_j a_j x_j over the patches j of the nearest keys, kept ones included. */
function gathered(
  X: Matrix,
  kept: Int32Array,
  { near, attention, count }: { readonly near: Matrix; readonly attention: Float64Array; readonly count: number },
): Matrix {
  const { rows: P, cols: D } = X;
  const tokens = rowsOf(X, kept);
  kept.forEach((patch, k) => {
    const neighbours = descending(near.data.subarray(k * P, (k + 1) * P), count, others(P, [patch]));
    const sum = new Float64Array(D);
    for (const j of neighbours) addTo(sum, X, j, attention[j]);
    for (let c = 0; c < D; c++) tokens.data[k * D + c] += sum[c];
  });
  return tokens;
}
