/** Ranks of scores: larger first, equal scores the lower index. */
import type { Numbers } from '../kernels/numeric.js';

/** Indices of the k largest scores, the largest first. */
export function descending(scores: Numbers, k = scores.length, among?: Iterable<number>): Int32Array {
  const candidates = among ? [...among] : Array.from(scores.keys());
  candidates.sort((a, b) => (scores[a] === scores[b] ? a - b : scores[b] - scores[a]));
  return Int32Array.from(candidates.slice(0, k));
}

/** The same, ascending by index. */
export function largest(scores: Numbers, k: number, among?: Iterable<number>): Int32Array {
  return descending(scores, k, among).sort();
}

/** The index of the largest score. */
export function argmax(scores: Numbers): number {
  let best = 0;
  for (let i = 1; i < scores.length; i++) if (scores[i] > scores[best]) best = i;
  return best;
}

/** Indices from 0 to `count` - 1 that are not among the given ones. */
export function others(count: number, given: Iterable<number>): number[] {
  const taken = new Set(given);
  return Array.from({ length: count }, (_, i) => i).filter((i) => !taken.has(i));
}

export function sum(numbers: Iterable<number>): number {
  let total = 0;
  for (const one of numbers) total += one;
  return total;
}

/** What lies above the quartiles of scores by more than 1.5 times their distance: Q3 + 1.5 (Q3 - Q1), interpolated linearly. */
export function outlierBound(scores: Numbers): number {
  const sorted = Float64Array.from(scores).sort();
  const quantile = (share: number) => {
    const at = (sorted.length - 1) * share;
    const below = Math.floor(at);
    const above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (sorted[above] - sorted[below]) * (at - below);
  };
  const [lower, upper] = [quantile(0.25), quantile(0.75)];
  return upper + 1.5 * (upper - lower);
}
