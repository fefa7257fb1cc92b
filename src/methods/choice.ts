/** Puts a method's choice together. */
import type { OptionNames } from '../options.js';
import { boolean } from '../tensor.js';
import { type Matrix, matrixOf, rowsOf, tensor } from './matrix.js';
import type { Choice, EachChoice, MethodChoice, MethodImage } from './method.js';

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
  return choice(kept, { assignment: ownPlaces(kept, states.rows), tokens: rowsOf(states, kept), ...further });
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

/** For each of `rows` patches its position in `kept`, or `elsewhere` where it is not kept: -1 stands for no token. */
export function ownPlaces(kept: Int32Array, rows: number, elsewhere = -1): Int32Array {
  const assignment = new Int32Array(rows).fill(elsewhere);
  kept.forEach((patch, k) => {
    assignment[patch] = k;
  });
  return assignment;
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

/**
 * What is said of the choices of several tiles: that of one tile after the other. Positions and patches count on from tile to tile.
 */
export function saidOfAll({ tiles, budget, scores }: EachChoice): MethodChoice {
  if (tiles.length === 1) return saidOf(tiles[0]);
  const shared = budget ?? joined(tiles.map((tile) => tile.budget));
  const picked = joined(
    tiles.map((tile) => tile.picked),
    tiles.map(({ assignment }) => assignment.length),
  );
  const names = new Set(tiles.flatMap((tile) => Object.keys(tile.scores)));
  const all = [...names].map((name) => [name, Float64Array.from(tiles.flatMap((tile) => [...tile.scores[name]]))]);
  return {
    order: joined(
      tiles.map(({ order }) => order),
      tiles.map(({ kept }) => kept.length),
    ) as Int32Array,
    ...(picked && { picked }),
    ...(shared && { budget: shared }),
    scores: { ...Object.fromEntries(all), ...scores },
    isProjected: tiles.some(({ isProjected }) => isProjected),
  };
}

/** What is said of one choice. */
export function saidOf({ order, picked, budget, scores, isProjected }: Choice): MethodChoice {
  return { order, ...(picked && { picked }), ...(budget && { budget }), scores, isProjected };
}

/** One list after the other, each counting on from the sizes of those before it; undefined where one is missing. */
function joined(lists: readonly (Int32Array | undefined)[], sizes?: readonly number[]): Int32Array | undefined {
  let first = 0;
  const all: number[] = [];
  for (const [i, list] of lists.entries()) {
    if (list === undefined) return undefined;
    for (const one of list) all.push(first + one);
    first += sizes?.[i] ?? 0;
  }
  return Int32Array.from(all);
}
