/**
 * HiRED: the tokens of an image of tiles are shared out by the class attention of an early block on the whole image, and each tile keeps its
 * highest by that of the last but one block. On one image it is FasterVLM's choice.
 */
import { finite, oneOf } from '../tensor.js';
import { MERGING, type MergingOption, mergingOf, selected } from './choice.js';
import { type Choice, type Grid, type MethodImage, method } from './method.js';
import { descending, largest, sum } from './ranks.js';
import { classAttention } from './tapped.js';

const ALLOCATIONS = ['spatial', 'bands'] as const;

export interface HiredOptions extends MergingOption {
  /** Share of K that the whole image has, and of its patches that have no say in the sharing; from 0 to 1, default 0.5. */
  readonly alpha?: number;
  /** Which tile a patch of the whole image is of: `spatial` (default), by its place; `bands`, as published: by equal runs of the raster. */
  readonly allocation?: (typeof ALLOCATIONS)[number];
}

export const hired = method<HiredOptions>(
  { ...MERGING, alpha: true, allocation: true },
  ({ alpha = 0.5, allocation = 'spatial', ...given }) => {
    finite('alpha', alpha, 0, 1);
    oneOf('allocation', allocation, ALLOCATIONS);
    const merging = mergingOf(given);
    return {
      taps: ['penultimate'],
      tileTaps: ['first'],
      isAsked: false,
      choose: highest,
      async chooseTiles([base, ...parts], grid, keep) {
        const marks = await classAttention(base, 'first');
        const room = parts.map(countOf);
        const sub = Math.min(keep - Math.min(Math.floor(keep * alpha), countOf(base)), sum(room));
        const marked = largest(marks, Math.floor(marks.length * (1 - alpha)));
        const counts = new Array<number>(parts.length).fill(0);
        for (const patch of marked) counts[tileOf(patch, base.grid, grid)]++;
        const budget = Int32Array.from([keep - sub, ...inProportion(sub, counts, room)]);
        const tiles: Choice[] = [];
        for (const [t, tile] of [base, ...parts].entries()) tiles.push(await highest(tile, budget[t]));
        return { tiles, budget, scores: { allocation: marks } };
      },
    };

    async function highest(image: MethodImage, keep: number): Promise<Choice> {
      const saliency = await classAttention(image, 'penultimate');
      return selected(image, largest(saliency, keep), { merging, scores: { saliency } });
    }

    /** The tile that a patch of the whole image falls into. */
    function tileOf(patch: number, { rows: h, columns: w }: Grid, { rows, columns }: Grid): number {
      if (allocation === 'bands') return Math.floor((patch * rows * columns) / (h * w));
      const [y, x] = [Math.floor(patch / w), patch % w];
      return Math.floor((y * rows) / h) * columns + Math.floor((x * columns) / w);
    }
  },
);

const countOf = (image: MethodImage) => image.states().rows;

/**
 * Shares of a total by largest remainder, in integers, at most `room` each. What has no room is shared again the same way among those that
 * have it and count anything, at last among all.
 */
function inProportion(total: number, counts: readonly number[], room: readonly number[]): Int32Array {
  const shares = new Int32Array(counts.length);
  for (let rest = total; rest > 0; rest = total - sum(shares)) {
    const open = Array.from(shares.keys()).filter((t) => shares[t] < room[t]);
    const counted = open.filter((t) => counts[t] > 0);
    const among = counted.length > 0 ? counted : open;
    const weights = among.map((t) => (counted.length > 0 ? counts[t] : 1));
    const all = sum(weights);
    const next = among.map((_, i) => Math.floor((rest * weights[i]) / all));
    const remainders = Float64Array.from(weights, (weight) => (rest * weight) % all);
    for (const i of descending(remainders, rest - sum(next))) next[i]++;
    among.forEach((t, i) => {
      shares[t] = Math.min(shares[t] + next[i], room[t]);
    });
  }
  return shares;
}
