/**
 * HoloV: K is shared out over runs of the raster by their class attention, and each run keeps its highest. As released, the variance that is
 * weighed in cancels: every run's score is 1.09 times its mean attention, and neither features nor its alpha have a part in the choice.
 */
import { integer } from '../tensor.js';
import { MERGING, type MergingOption, mergingOf, places, selected } from './choice.js';
import { method } from './method.js';
import { descending, sum } from './ranks.js';
import { classAttention } from './tapped.js';

export interface HolovOptions extends MergingOption {
  /** How many runs: default 16, at most P. */
  readonly runs?: number;
}

export const holov = method<HolovOptions>({ ...MERGING, runs: true }, ({ runs = 16, ...given }) => {
  integer('runs', runs, 1, 2 ** 31 - 1);
  const merging = mergingOf(given);
  return {
    taps: ['penultimate'],
    isAsked: false,
    async choose(image, keep) {
      const saliency = await classAttention(image, 'penultimate');
      const parts = runsOf(saliency.length, Math.min(runs, saliency.length));
      const means = Float64Array.from(parts, (run) => sum(run.map((patch) => saliency[patch])) / run.length);
      const weights = means.map((mean) => mean / sum(means));
      const budget = sharedOut(
        keep,
        weights,
        parts.map(({ length }) => length),
      );
      const patches = parts.flatMap((run, p) => [...descending(saliency, budget[p], run)]);
      const kept = Int32Array.from(patches).sort();
      const further = { order: places(kept, patches), budget, scores: { saliency, runScore: means } };
      return selected(image, kept, { merging, ...further });
    },
  };
});

/** Runs of the flat sequence, the first of which are one longer where they do not come out even. */
function runsOf(P: number, runs: number): number[][] {
  let at = 0;
  return Array.from({ length: runs }, (_, p) => {
    const size = Math.floor(P / runs) + Number(p < P % runs);
    return Array.from({ length: size }, () => at++);
  });
}

/** floor(w_p K) each; what is left over, and what a run has no room for, goes to the highest weights, one each, round after round. */
function sharedOut(keep: number, weights: Float64Array, room: readonly number[]): Int32Array {
  const budget = Int32Array.from(weights, (weight) => Math.floor(weight * keep));
  const ranked = descending(weights);
  for (const p of ranked.subarray(0, keep - sum(budget))) budget[p]++;
  for (let p = 0; p < budget.length; p++) budget[p] = Math.min(budget[p], room[p]);
  for (let rest = keep - sum(budget); rest > 0; )
    for (const p of ranked)
      if (rest > 0 && budget[p] < room[p]) {
        budget[p]++;
        rest--;
      }
  return budget;
}
