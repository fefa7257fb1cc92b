/**
 * A token that stands for all dropped patches, of methods that publish one beside their K: here it is one of the K. The last dropped patch
 * stands for it, so that indices stay distinct and every dropped patch is assigned to it.
 */
import { choice, dropped, ownPlaces, places } from './choice.js';
import { addTo, type Matrix, rowsOf } from './matrix.js';
import type { Choice } from './method.js';
import { others } from './ranks.js';

/** `source` of the aggregate. */
const AGGREGATE = 2;

/** Whether one of K given tokens is it: it needs a patch beside it, and one that is dropped. Where K comes out, it is there if any is dropped. */
export function hasAggregate(wanted: boolean, keep: number, patches: number): boolean {
  return wanted && keep >= 2 && keep < patches;
}

/**
 * @param patches that are kept, in the order of the published code
 * @param source of each of them
 * @param weight of each dropped patch in the aggregate, given how many there are
 */
export function withAggregate(
  tokens: Matrix,
  X: Matrix,
  { patches, source }: { readonly patches: readonly number[]; readonly source: (patch: number) => number },
  weight: (patch: number, dropped: number) => number,
  scores: Choice['scores'],
): Choice {
  const rest = others(X.rows, patches);
  const own = Int32Array.from(patches).sort();
  const last = rest[rest.length - 1];
  const kept = Int32Array.from([...own, last]).sort();
  const at = kept.indexOf(last);
  const { data } = rowsOf(
    tokens,
    Array.from(kept, (_, k) => (k < at ? k : Math.max(0, k - 1))),
  );
  const sum = new Float64Array(X.cols);
  for (const patch of rest) addTo(sum, X, patch, weight(patch, rest.length));
  data.set(sum, at * X.cols);
  return choice(kept, {
    assignment: ownPlaces(kept, X.rows, at),
    tokens: { data, rows: kept.length, cols: X.cols },
    source: Uint8Array.from(kept, (patch) => (patch === last ? AGGREGATE : source(patch))),
    order: places(kept, [...patches, last]),
    scores,
  });
}

/** Without it. */
export function withoutAggregate(
  tokens: Matrix,
  X: Matrix,
  { patches, source }: { readonly patches: readonly number[]; readonly source: (patch: number) => number },
  scores: Choice['scores'],
): Choice {
  const kept = Int32Array.from(patches).sort();
  return {
    ...dropped(kept, X, { order: places(kept, patches), source: Uint8Array.from(kept, source), scores }),
    tokens,
  };
}
