/** The option `tower`: rows that are dropped inside the tower. */
import { alternatives, invalid, mismatch } from '../errors.js';
import { type OptionNames, options } from '../options.js';
import { shareOf } from '../prune-request.js';
import { integer, object, oneOf } from '../tensor.js';

/**
 * Which rows stay. `distance`: those whose states at the cut lie farthest from each other; `class-token`: those that the class row attends
 * to most in the block behind the cut; `flow`: those of FlowCut's largest score there; `random`: by chance, the same ones every time.
 */
export type RowRule = (typeof ROW_RULES)[number];
export const ROW_RULES = ['distance', 'class-token', 'flow', 'random'] as const;

/** Rows that are dropped in front of a block of the tower: the blocks behind it run on the others alone. */
export interface TowerOptions {
  /** How many blocks of the tower see all rows: from 1 to one less than there are in front of the encoder's last block. */
  readonly at: number;
  /** Visual tokens of each tile that stay: a share below 1, rounded half up, or a count from 1. A count of at least all drops nothing. */
  readonly keep: number;
  /** Default `distance`. */
  readonly by?: RowRule;
}

/** The same with every value. */
export type TowerChoice = Required<TowerOptions>;

const NAMES: OptionNames<TowerOptions> = { at: true, keep: true, by: true };

/**
 * The option as far as it can be judged before there is a tower.
 * @returns null where it is not given
 * @throws DesapError `ERR_VALUE`
 */
export function towerChoice(given: TowerOptions | undefined): TowerChoice | null {
  if (given === undefined) return null;
  const { at, keep, by = 'distance' } = options('tower', object('tower', given, '{ at, keep }'), NAMES);
  integer('tower.at', at, 1, Number.MAX_SAFE_INTEGER);
  const isShare = typeof keep === 'number' && keep > 0 && keep < 1;
  if (!isShare && !(Number.isSafeInteger(keep) && keep >= 1))
    throw invalid('ERR_VALUE', 'tower.keep', keep, 'a share above 0 and below 1, or a count of at least 1');
  return { at, keep, by: oneOf('tower.by', by, ROW_RULES) };
}

/**
 * Checks that a tower has what a rule reads.
 * @param why it has no others, for messages
 * @throws DesapError `ERR_VALUE`
 */
export function checkRule({ by }: TowerChoice, rules: readonly RowRule[], why: string): void {
  if (!rules.includes(by)) throw mismatch('ERR_VALUE', 'tower.by', `'${by}' ${why}`, alternatives(rules));
}

/** @throws DesapError `ERR_VALUE` where the option is given and a family cannot */
export function refuseTower(given: TowerOptions | undefined, why: string): void {
  if (given !== undefined) throw mismatch('ERR_VALUE', 'tower', `a cut ${why}`, 'none');
}

/** How many of a tile's units stay. */
export function unitsKept({ keep }: Pick<TowerChoice, 'keep'>, units: number): number {
  return keep < 1 ? Math.max(1, shareOf(units, keep)) : Math.min(keep, units);
}
