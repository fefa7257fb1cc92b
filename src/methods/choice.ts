/** Puts a method's choice together. */
import type { OptionNames } from '../options.js';
import { boolean } from '../tensor.js';
import { type Matrix, matrixOf, rowsOf, tensor } from './matrix.js';
import type { Choice, MethodImage } from './method.js';

/** The option of every method that selects and does not merge. */
export interface MergingOption {
  /** true: every other patch is merged into the nearest of those that are kept, as DeSAP does; default false: it is dropped. */
  readonly merging?: boolean;
}
export const MERGING: OptionNames<MergingOption> = { merging: true };

export function mergingOf({ merging = false }: MergingOption): boolean {
  return boolean('merging', merging);
}

/** What a method may say of its choice. */
interface Further extends Partial<Pick<Choice, 'order' | 'source' | 'budget' | 'picked' | 'scores'>> {}

/** Patches that are kept as they are, or with the others merged into them by cosine. */
export async function selected(
  image: MethodImage,
  patches: Iterable<number>,
  { merging, ...further }: { readonly merging: boolean } & Further,
): Promise<Choice> {
  const kept = Int32Array.from(patches).sort();
  if (!merging) return dropped(kept, image.states(), further);
  return merged(image, kept, image.states(), further);
}

/** Patches that are kept as they are. The others are dropped. */
export function dropped(kept: Int32Array, states: Matrix, further: Further): Choice {
  const assignment = new Int32Array(states.rows).fill(-1);
  kept.forEach((patch, k) => {
    assignment[patch] = k;
  });
  return choice(kept, { assignment, tokens: rowsOf(states, kept), ...further });
}

/** Patches into which the others are merged: each goes to the kept one of highest cosine, and tokens are plain means. */
export async function merged(
  { backend, timed }: MethodImage,
  kept: Int32Array,
  rows: Matrix,
  further: Further & Partial<Pick<Choice, 'isProjected'>>,
): Promise<Choice> {
  if (kept.length === 0) return dropped(kept, rows, further);
  const { tokens, assignment } = await timed('merge', () => backend.merge({ features: tensor(rows), kept }));
  return choice(kept, { assignment, tokens: matrixOf(tokens), ...further });
}

/** A choice, with what follows from its assignment. */
export function choice(
  kept: Int32Array,
  given: Pick<Choice, 'assignment' | 'tokens'> & Further & Partial<Pick<Choice, 'isProjected'>>,
): Choice {
  const counts = new Int32Array(kept.length);
  for (const k of given.assignment) if (k >= 0) counts[k]++;
  return {
    kept,
    counts,
    source: new Uint8Array(kept.length),
    order: kept.map((_, k) => k),
    isProjected: false,
    scores: {},
    ...given,
  };
}

/** Positions in `kept` of patches, in their order. */
export function places(kept: Int32Array, patches: Iterable<number>): Int32Array {
  return Int32Array.from(patches, (patch) => kept.indexOf(patch));
}

/** For each kept patch 1 if it is one of these, or 0. */
export function among(kept: Int32Array, patches: Iterable<number>): Uint8Array {
  const those = new Set(patches);
  return Uint8Array.from(kept, (patch) => Number(those.has(patch)));
}
