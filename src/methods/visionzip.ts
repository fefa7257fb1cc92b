/**
 * VisionZip: dominant patches by class attention, and contextual ones, each of which gathers the patches whose keys are like its own. A
 * contextual token is its patch plus the mean of what it gathers: its norm grows.
 */
import { finite, oneOf } from '../tensor.js';
import { among, choice, ownPlaces, places } from './choice.js';
import { type Matrix, products, rowsOf, unitRows } from './matrix.js';
import { method } from './method.js';
import { argmax, largest, others } from './ranks.js';
import { TappedBlock } from './tapped.js';

const COMBINATIONS = ['sum', 'mean'] as const;

export interface VisionZipOptions {
  /** Share of K that is contextual, from 0 to 1; default 10/64. */
  readonly contextualShare?: number;
  /** `sum`, as published: patch plus mean of its members; `mean`: plain mean of both. Default `sum`. */
  readonly combine?: (typeof COMBINATIONS)[number];
}

export const visionzip = method<VisionZipOptions>(
  { contextualShare: true, combine: true },
  ({ contextualShare = 10 / 64, combine = 'sum' }) => {
    finite('contextualShare', contextualShare, 0, 1);
    oneOf('combine', combine, COMBINATIONS);
    return {
      taps: ['penultimate'],
      isAsked: false,
      async choose(image, keep) {
        const X = image.states();
        const tap = await TappedBlock.of(image, 'penultimate');
        const [saliency, metric] = [await tap.attention(), await unitRows(image.backend, await tap.meanKeys())];
        const contextual = Math.floor(keep * contextualShare + 0.5);
        const dominant = largest(saliency, keep - contextual);
        const rest = others(X.rows, dominant);
        const step = Math.max(1, Math.floor(rest.length / Math.max(1, contextual)));
        const targets = Array.from({ length: contextual }, (_, t) => rest[t * step]);
        const members = others(X.rows, [...dominant, ...targets]);
        const kept = Int32Array.from([...dominant, ...targets]).sort();

        const assignment = ownPlaces(kept, X.rows);
        const tokens = await image.timed('merge', async () => {
          if (contextual > 0 && members.length > 0) {
            const near = await products(image.backend, rowsOf(metric, members), rowsOf(metric, targets));
            const positions = places(kept, targets);
            members.forEach((patch, i) => {
              assignment[patch] = positions[argmax(near.data.subarray(i * contextual, (i + 1) * contextual))];
            });
          }
          return gather(X, kept, assignment, combine);
        });
        return choice(kept, {
          assignment,
          tokens,
          source: among(kept, targets),
          order: places(kept, [...dominant, ...targets]),
          scores: { saliency, metric: metric.data },
        });
      },
    };
  },
);

/** Each kept row with the mean of those that are assigned to it. */
function gather(X: Matrix, kept: Int32Array, assignment: Int32Array, combine: 'sum' | 'mean'): Matrix {
  const D = X.cols;
  const sums = new Float64Array(kept.length * D);
  const counts = new Int32Array(kept.length);
  assignment.forEach((k, patch) => {
    if (k < 0 || kept[k] === patch) return;
    counts[k]++;
    for (let c = 0; c < D; c++) sums[k * D + c] += X.data[patch * D + c];
  });
  const tokens = rowsOf(X, kept);
  counts.forEach((count, k) => {
    if (count === 0) return;
    for (let at = k * D; at < (k + 1) * D; at++)
      tokens.data[at] =
        combine === 'sum' ? tokens.data[at] + sums[at] / count : (tokens.data[at] + sums[at]) / (count + 1);
  });
  return tokens;
}
