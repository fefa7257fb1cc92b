/** How the visual tokens that an image may keep are shared over its tiles. */
import { mismatch } from '../errors.js';
import { keepCount } from '../prune-request.js';
import type { Budget, TokenMaps, VisionPruneOptions } from './vision-model.js';

/**
 * K of each tile where the budget is of each: `keep`, or all units of a tile that has fewer; or their share.
 *
 * @param units of each tile
 * @param there those of them that the tower did not drop; default: all
 * @throws DesapError `ERR_VALUE` for more than the largest tile has
 */
export function eachTile({ keep, keepRatio }: Budget, units: readonly number[], there = units): number[] {
  if (keepRatio === undefined) keepCount({ keep }, Math.max(...units));
  const asked = (own: number) => (keepRatio === undefined ? (keep as number) : keepCount({ keep, keepRatio }, own));
  return units.map((own, tile) => Math.min(asked(own), there[tile]));
}

/**
 * K of a whole image, or of several, with at least one unit for each tile.
 *
 * @param units of each tile, or of each image
 * @param tiles how many there are
 * @throws DesapError `ERR_VALUE` for more units than there are, and for fewer than tiles
 */
export function wholeImage(budget: Budget, units: readonly number[], tiles = units.length): number {
  const total = keepCount(
    budget,
    units.reduce((sum, count) => sum + count, 0),
  );
  if (total >= tiles) return total;
  if (budget.keepRatio !== undefined) return tiles;
  throw mismatch('ERR_VALUE', 'keep', `${total} for ${tiles} tiles`, 'at least one for each tile');
}

/**
 * Shares K over tiles, or images, by their masses, the largest remainder first and ties to the lower one. Each gets at least its least,
 * and at most its units; what one cannot take goes to the others. Without any mass the units count.
 *
 * @param total K, from the sum of the least to that of the units
 * @param masses not negative
 * @param least of each; default: one
 */
export function shared(
  total: number,
  units: readonly number[],
  masses: readonly number[],
  least: readonly number[] = units.map(() => 1),
): number[] {
  const quotas = quotasOf(total, units, masses, least);
  const counts = quotas.map(Math.floor);
  const rest = total - counts.reduce((sum, count) => sum + count, 0);
  const byRemainder = [...quotas.keys()].sort((a, b) => quotas[b] - counts[b] - (quotas[a] - counts[a]) || a - b);
  for (const tile of byRemainder.slice(0, rest)) counts[tile]++;
  return counts;
}

/** What a question finds in a tile or an image, or without one what stands out in it: the sum of a map's part above zero. */
export function massOf({ task, saliency }: TokenMaps, { taskShare }: Pick<VisionPruneOptions, 'taskShare'>): number {
  const map = (taskShare !== 0 && task) || saliency;
  return map.reduce((sum, value) => sum + Math.max(0, value), 0);
}

/** Shares in proportion to the masses, each within its bounds: those at the bound that is violated more are settled first. */
function quotasOf(
  total: number,
  units: readonly number[],
  masses: readonly number[],
  least: readonly number[],
): number[] {
  const quotas = new Array<number>(units.length).fill(0);
  let open = [...units.keys()];
  for (let rest = total; open.length > 0; ) {
    const sum = (of: readonly number[]) => open.reduce((all, tile) => all + of[tile], 0);
    const weights = sum(masses) > 0 ? masses : units;
    const scale = rest / sum(weights);
    for (const tile of open) quotas[tile] = weights[tile] * scale;
    const bounded = (tile: number) => Math.min(Math.max(quotas[tile], least[tile]), units[tile]);
    const excess = open.reduce((all, tile) => all + quotas[tile] - bounded(tile), 0);
    const settled = new Set(
      open.filter((tile) =>
        excess === 0 ? true : excess > 0 ? quotas[tile] > units[tile] : quotas[tile] < least[tile],
      ),
    );
    for (const tile of settled) {
      quotas[tile] = bounded(tile);
      rest -= quotas[tile];
    }
    open = open.filter((tile) => !settled.has(tile));
  }
  return quotas;
}
