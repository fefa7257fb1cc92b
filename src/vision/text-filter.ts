/** Which words of a long text are compared with an image. */
import { describe, mismatch } from '../errors.js';
import { dot } from '../kernels/numeric.js';
import type { CheckedFilter } from './long-text.js';
import type { Word } from './words.js';

/** What became of a text that was filtered. */
export interface FilteredText {
  /** Tokens that stayed: their positions in the text without special tokens, ascending. */
  readonly kept: Int32Array;
  /** w_j = a_j (1 - f_j) of every token of the text without special tokens: its importance, and how common it is. */
  readonly scores: Float64Array;
  /** How many are gone. */
  readonly dropped: number;
}

/**
 * Importances of several windows as those of one text: of each window, a_j / mean(a). A single window stays as it is.
 *
 * @param windows a [tokens] of each window
 */
export function levelled(windows: readonly Float64Array[]): Float64Array {
  if (windows.length === 1) return windows[0];
  const parts = windows.map((own) => {
    const mean = own.reduce((sum, value) => sum + value, 0) / own.length;
    return mean > 0 ? own.map((value) => value / mean) : own;
  });
  return Float64Array.from(parts.flatMap((part) => [...part]));
}

/**
 * a_j = max(0, cos(S_j, q)) of each row; 0 for one of zeros.
 *
 * @param rows S [T, E]
 * @param whole q [E]
 */
export function cosines(rows: Float32Array, whole: Float32Array): Float64Array {
  const width = whole.length;
  const product = (a: Float32Array, at: number, b: Float32Array, from: number) => dot(a, at, b, from, width);
  const length = Math.sqrt(product(whole, 0, whole, 0));
  return Float64Array.from({ length: rows.length / width }, (_, i) => {
    const at = i * width;
    const cosine = product(rows, at, whole, 0) / (Math.sqrt(product(rows, at, rows, at)) * length);
    return Math.max(0, cosine || 0);
  });
}

/**
 * f of some tokens.
 * @throws DesapError `ERR_VALUE` with the id of one whose frequency is none
 */
export function frequencies(ids: readonly number[], { frequency }: Pick<CheckedFilter, 'frequency'>): Float64Array {
  return Float64Array.from(ids, (id) => {
    const value = frequency(id);
    if (typeof value === 'number' && value >= 0 && value <= 1) return value;
    throw mismatch('ERR_VALUE', 'filter.frequency', `${describe(value)} for the id ${id}`, 'a number from 0 to 1');
  });
}

/**
 * Words by descending score, the largest w of their tokens, ties to the earlier word, until the next one does not fit: what is kept for a
 * budget is kept for every larger one. Of a first word that does not fit, its first tokens.
 *
 * @param importance a [tokens]
 * @param common f [tokens]
 * @param words of the text, in their order
 * @param budget tokens that may stay, at least 1
 */
export function filterWords(
  importance: Float64Array,
  common: Float64Array,
  words: readonly Word[],
  { budget, keepPunctuation }: { readonly budget: number } & Pick<CheckedFilter, 'keepPunctuation'>,
): FilteredText {
  const scores = importance.map((a, j) => a * (1 - common[j]));
  const said = words.filter(({ isSaid }) => isSaid || keepPunctuation);
  const score = ({ from, to }: Word) => scores.subarray(from, to).reduce((most, w) => Math.max(most, w), 0);
  // A sort is stable: of equal scores the earlier word stays in front.
  const ranked = [...(said.length > 0 ? said : words)].sort((a, b) => score(b) - score(a));
  const kept: number[] = [];
  for (const { from, to } of ranked) {
    const size = kept.length === 0 ? Math.min(to - from, budget) : to - from;
    if (kept.length + size > budget) break;
    for (let j = from; j < from + size; j++) kept.push(j);
  }
  return { kept: Int32Array.from(kept).sort(), scores, dropped: scores.length - kept.length };
}
