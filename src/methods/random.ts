/** random: K patches by chance, the same ones for the same seed. Reads nothing. */
import { integer } from '../tensor.js';
import { MERGING, type MergingOption, mergingOf, selected } from './choice.js';
import { method } from './method.js';

export interface RandomOptions extends MergingOption {
  /** From 0 to 2^32 - 1, default 0. */
  readonly seed?: number;
}

export const random = method<RandomOptions>({ ...MERGING, seed: true }, ({ seed = 0, ...given }) => {
  integer('seed', seed, 0, 2 ** 32 - 1);
  const merging = mergingOf(given);
  return {
    taps: [],
    isAsked: false,
    async choose(image, keep) {
      const { rows: P } = image.states();
      return selected(image, shuffled(P, keep, mulberry32(seed)), { merging });
    },
  };
});

/** The first `count` of 0 to P - 1 by Fisher-Yates. */
function shuffled(P: number, count: number, next: () => number): number[] {
  const all = Array.from({ length: P }, (_, i) => i);
  for (let t = 0; t < count; t++) {
    const other = t + Math.floor(next() * (P - t));
    [all[t], all[other]] = [all[other], all[t]];
  }
  return all.slice(0, count);
}

/** Numbers from 0 to 1: mulberry32, whose state is a uint32. */
function mulberry32(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
