/** What is chosen of an image's tiles by a method in place of DeSAP's own. */
import { describe, mismatch, notFinite } from '../errors.js';
import type { PruneResult } from '../index.js';
import { chooserOf, type RivalName } from '../methods/index.js';
import type { Choice, Chooser, Grid, MethodImage } from '../methods/method.js';
import { keepCount } from '../prune-request.js';
import { float32 } from '../tensor.js';
import { eachTile } from './allocation.js';
import type { Budget, VisionPruneOptions } from './vision-model.js';

/** Options with which a method is asked for. */
export type RivalOptions = VisionPruneOptions & { readonly method: RivalName };

/** Whether options ask for another method than DeSAP's own. */
export function isRival(options: VisionPruneOptions): options is RivalOptions {
  const { method = 'desap', methodOptions } = options;
  if (method !== 'desap') return true;
  if (methodOptions === undefined) return false;
  throw mismatch(
    'ERR_VALUE',
    'methodOptions',
    'options of no method',
    'the option method beside them, with another than desap',
  );
}

/**
 * The method that options ask for.
 * @throws DesapError `ERR_VALUE` for an unknown method, for its options, and for those of DeSAP's own beside it
 */
export function rivalOf({ method, methodOptions, keep, keepRatio, allocation: _, ...own }: RivalOptions): Chooser {
  const chooser = chooserOf(method, methodOptions);
  const further = chooser.isAdaptive ? { ...own, keep, keepRatio } : own;
  for (const [name, value] of Object.entries(further))
    if (value !== undefined)
      throw mismatch(
        'ERR_VALUE',
        name,
        `${describe(value)} beside method: '${method}'`,
        'none: it has no part in that',
      );
  return chooser;
}

/** How many tokens are asked for, and of what. */
export interface MethodBudget {
  readonly budget: Budget;
  readonly allocation: VisionPruneOptions['allocation'];
  /** How the tiles behind the first, which is the whole image, make one; null where there is no such image. */
  readonly grid: Grid | null;
}

/** What a method chose of each tile. A method that shares one K has of `allocation: 'tile'` as many tokens as K of each tile come to. */
export async function choicesOf(
  chooser: Chooser,
  tiles: readonly MethodImage[],
  { budget, allocation = 'tile', grid }: MethodBudget,
): Promise<Choice[]> {
  const units = tiles.map((tile) => tile.states().rows);
  const total = units.reduce((sum, count) => sum + count, 0);
  if (tiles.length > 1 && grid && chooser.chooseTiles) {
    const keep =
      allocation === 'image'
        ? keepCount(budget, total)
        : eachTile(budget, units).reduce((sum, count) => sum + count, 0);
    return [...(await chooser.chooseTiles(tiles, grid, keep)).tiles];
  }
  if (tiles.length > 1 && allocation === 'image')
    throw mismatch(
      'ERR_VALUE',
      'allocation',
      `'image' for ${tiles.length} tiles`,
      "'tile': this method runs on each by itself",
    );
  const counts = chooser.isAdaptive ? units : eachTile(budget, units);
  const choices: Choice[] = [];
  for (const [t, tile] of tiles.entries()) choices.push(await chooser.choose(tile, counts[t]));
  return choices;
}

/**
 * As the pruner gives it.
 * @throws DesapError `ERR_NOT_FINITE`
 */
export function asKept({ kept, source, assignment, counts, tokens: { data, rows, cols } }: Choice): PruneResult {
  const bad = data.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) throw notFinite('tokens', Math.floor(bad / cols));
  const nothing = { normalize: 0, project: 0, attention: 0, saliency: 0, readOut: 0, align: 0, select: 0, merge: 0 };
  return { tokens: float32(data, [rows, cols]), indices: kept, source, assignment, counts, timings: nothing };
}
