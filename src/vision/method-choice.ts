/** What is chosen of an image's tiles by a method in place of DeSAP's own. */
import { mismatch } from '../errors.js';
import { saidOfAll } from '../methods/choice.js';
import type { RivalName } from '../methods/index.js';
import type { Choice, Chooser, EachChoice, Grid, MethodChoice, MethodImage } from '../methods/method.js';
import { keepCount } from '../prune-request.js';
import { eachTile } from './allocation.js';
import type { Budget, VisionPruneOptions } from './vision-model.js';
import type { KeptImage, Part } from './whole-image.js';

/** Options with which a method is asked for. */
export type RivalOptions = VisionPruneOptions & { readonly method: RivalName };

/** How many tokens are asked for, and of what. */
export interface MethodBudget {
  readonly budget: Budget;
  /** How many units each tile has, those that its tower dropped among them: what the budget is of. */
  readonly units: readonly number[];
  readonly allocation: VisionPruneOptions['allocation'];
  /** How the tiles behind the first, which is the whole image, make one; null where there is no such image. */
  readonly grid: Grid | null;
}

/** What a method chose of each tile. A method that shares one K has of `allocation: 'tile'` as many tokens as K of each tile come to. */
export async function choicesOf(
  chooser: Chooser,
  tiles: readonly MethodImage[],
  { budget, units, allocation = 'tile', grid }: MethodBudget,
): Promise<EachChoice> {
  const there = tiles.map((tile) => tile.states().rows);
  const sum = (counts: readonly number[]) => counts.reduce((all, count) => all + count, 0);
  if (tiles.length > 1 && grid && chooser.chooseTiles) {
    const keep =
      allocation === 'image'
        ? Math.min(keepCount(budget, sum(units)), sum(there))
        : sum(eachTile(budget, units, there));
    return chooser.chooseTiles(tiles, grid, keep);
  }
  if (tiles.length > 1 && allocation === 'image')
    throw mismatch(
      'ERR_VALUE',
      'allocation',
      `'image' for ${tiles.length} tiles`,
      "'tile': this method runs on each by itself",
    );
  const counts = chooser.isAdaptive ? there : eachTile(budget, units, there);
  const choices: Choice[] = [];
  for (const [t, tile] of tiles.entries()) choices.push(await chooser.choose(tile, counts[t]));
  return { tiles: choices };
}

/**
 * What is said of the choices of an image's parts, in its tokens. Markers stay where they are in every order.
 *
 * @param parts those that have units
 */
export function choiceOfImage(
  choices: EachChoice,
  parts: readonly Part[],
  { unitRows, markerRows, indices }: KeptImage,
): MethodChoice {
  const { order, picked, ...said } = saidOfAll(choices);
  const places = parts.flatMap((part) => [...part.places]);
  const rows = order.values();
  const isMarker = new Set(markerRows);
  return {
    order: indices.map((_, row) => (isMarker.has(row) ? row : unitRows[rows.next().value as number])),
    ...(picked && { picked: picked.map((unit) => places[unit]) }),
    ...said,
  };
}
