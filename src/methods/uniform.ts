/**
 * uniform: patches of a grid that is as even as K allows. Reads nothing. Published baselines of this name step through the flat index, which
 * can come to one column.
 */
import { MERGING, type MergingOption, mergingOf, selected } from './choice.js';
import { type Grid, method } from './method.js';

export interface UniformOptions extends MergingOption {}

export const uniform = method<UniformOptions>(MERGING, (given) => {
  const merging = mergingOf(given);
  return {
    taps: [],
    isAsked: false,
    choose: (image, keep) => selected(image, evenly(image.grid, keep), { merging }),
  };
});

/** r rows at even distances; row t has floor((t + 1) K / r) - floor(t K / r) patches at even distances. */
function evenly({ rows: h, columns: w }: Grid, keep: number): number[] {
  const r = Math.min(Math.max(Math.floor(Math.sqrt((keep * h) / w) + 0.5), Math.ceil(keep / w)), Math.min(h, keep));
  const middle = (t: number, parts: number, extent: number) => Math.floor(((2 * t + 1) * extent) / (2 * parts));
  return Array.from({ length: r }, (_, t) => {
    const count = Math.floor(((t + 1) * keep) / r) - Math.floor((t * keep) / r);
    return Array.from({ length: count }, (_, j) => middle(t, r, h) * w + middle(j, count, w));
  }).flat();
}
