/** The option `tiles`: which tiles of an image are encoded. */
import { alternatives, invalid, mismatch } from '../errors.js';
import { type OptionNames, options } from '../options.js';
import { shareOf } from '../prune-request.js';
import { object, oneOf } from '../tensor.js';

/**
 * What tells the tiles that a question needs. `block`: what a lower block of the tower sees in each tile, next to the question's end row (CLIP
 * towers). The others read the whole view: `task`, the task map's two highest values within a tile; `kk`, the same by the attention of keys,
 * whatever `encoding` says (CLIP towers); `words`, the same for that row of the question which tells the tiles apart most; `contrast`, the
 * highest value less the tile's mean (both by the attention of keys where `kk` is); `saliency`, the mean of the saliency map, without the
 * question.
 */
export type LookRule = (typeof TILE_RULES)[number];
export const TILE_RULES = ['block', 'kk', 'task', 'words', 'contrast', 'saliency'] as const;
/** Those of encoders that are no CLIP towers. */
export const VIEW_RULES: readonly LookRule[] = ['task', 'words', 'contrast', 'saliency'];

/** The whole view goes through the tower first; of the tiles only those that a question needs. */
export interface TileOptions {
  /**
   * How many tiles beside the whole view: a count from 1, a share below 1 (rounded half up, at least one), or `auto`, the fewest whose scores
   * make up `mass`. A count of at least all leaves none out.
   */
  readonly keep: number | 'auto';
  /** Default: `block` for CLIP towers, `task` for all others. Without a question it is `saliency`. */
  readonly by?: LookRule;
  /**
   * With `keep: 'auto'`: the share, above 0 and at most 1, of the sum over tiles of (score - lowest score). Default 0.9.
   */
  readonly mass?: number;
}

/** The same with every value. */
export type TileChoice = Required<TileOptions>;

const NAMES: OptionNames<TileOptions> = { keep: true, by: true, mass: true };
const MASS = 0.9;

/**
 * The option, checked.
 *
 * @param rules that the encoder has what they read for; the first is the default
 * @returns null where it is not given
 * @throws DesapError `ERR_VALUE`
 */
export function tileChoice(given: TileOptions | undefined, rules: readonly LookRule[]): TileChoice | null {
  if (given === undefined) return null;
  const { keep, by = rules[0], mass } = options('tiles', object('tiles', given, '{ keep }'), NAMES);
  const isShare = typeof keep === 'number' && keep > 0 && keep < 1;
  if (!isShare && keep !== 'auto' && !(Number.isSafeInteger(keep) && keep >= 1))
    throw invalid('ERR_VALUE', 'tiles.keep', keep, "a share above 0 and below 1, a count of at least 1, or 'auto'");
  oneOf('tiles.by', by, TILE_RULES);
  if (!rules.includes(by))
    throw mismatch('ERR_VALUE', 'tiles.by', `'${by}', which reads a CLIP tower`, alternatives(rules));
  if (mass !== undefined && keep !== 'auto')
    throw mismatch('ERR_VALUE', 'tiles.mass', `${mass} with a number of tiles`, "keep: 'auto' beside it");
  if (mass !== undefined && !(typeof mass === 'number' && mass > 0 && mass <= 1))
    throw invalid('ERR_VALUE', 'tiles.mass', mass, 'a share above 0 and at most 1');
  return { keep, by, mass: mass ?? MASS };
}

/** @throws DesapError `ERR_VALUE` where the option is given to a family that cannot */
export function refuseTiles(given: TileOptions | undefined): void {
  if (given === undefined) return;
  throw mismatch(
    'ERR_VALUE',
    'tiles',
    'tiles to leave out of a model whose images have no whole view beside tiles',
    'none: LLaVA-NeXT, Idefics3, SmolVLM and LFM2-VL have such tiles',
  );
}

/**
 * Whether every tile is taken whatever its score.
 * @param tiles beside the whole view
 */
export function takesAll({ keep }: Pick<TileChoice, 'keep'>, tiles: number): boolean {
  return tiles < 2 || (keep !== 'auto' && countOf(keep, tiles) === tiles);
}

/**
 * The tiles that are taken: those of the highest scores, equal scores to the lower tile.
 * @param scores of the tiles that there are
 * @returns their places in `scores`, ascending
 */
export function tilesTaken({ keep, mass }: Pick<TileChoice, 'keep' | 'mass'>, scores: Float32Array): Int32Array {
  const best = [...scores.keys()].sort((a, b) => scores[b] - scores[a] || a - b);
  const count =
    keep === 'auto'
      ? countOfMass(
          mass,
          Float64Array.from(best, (tile) => scores[tile]),
        )
      : countOf(keep, best.length);
  return Int32Array.from(best.slice(0, count)).sort();
}

/** How many tiles are taken at most, of so many. */
export function mostTaken({ keep }: Pick<TileChoice, 'keep'>, tiles: number): number {
  return keep === 'auto' ? tiles : countOf(keep, tiles);
}

function countOf(keep: number, tiles: number): number {
  return keep < 1 ? Math.max(1, shareOf(tiles, keep)) : Math.min(keep, tiles);
}

/** The fewest of some descending scores whose parts above the lowest make up a share of all; without any such part all of them. */
function countOfMass(mass: number, scores: Float64Array): number {
  const lowest = scores[scores.length - 1];
  const above = scores.map((score) => score - lowest);
  const all = above.reduce((sum, part) => sum + part, 0);
  if (mass === 1 || all === 0) return scores.length;
  let [count, sum] = [0, 0];
  while (sum < mass * all) sum += above[count++];
  return count;
}
