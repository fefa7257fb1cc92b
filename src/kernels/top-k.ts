/**
 * The indices of the k largest scores, ascending. Equal scores (and -0 = +0): the lower index wins. Entries whose
 * `excluded` byte is set do not take part; at least k entries must. `name` is what errors call the scores.
 */
import { notFinite } from '../errors.js';
import type { Numbers } from './numeric.js';

export function topK(scores: Numbers, k: number, excluded: Uint8Array | null, name = 'scores'): Int32Array {
  const candidates: number[] = [];
  for (let i = 0; i < scores.length; i++) {
    if (excluded?.[i]) continue;
    if (Number.isNaN(scores[i])) throw notFinite(name, i);
    candidates.push(i);
  }
  const higher = (a: number, b: number) => (scores[a] === scores[b] ? a - b : scores[a] > scores[b] ? -1 : 1);
  return Int32Array.from(candidates.sort(higher).slice(0, k)).sort();
}
