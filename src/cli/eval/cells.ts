/** What is measured: every method with every amount and both positions, beside all visual tokens. */
import { mismatch } from '../../errors.js';
import { oneOf } from '../../tensor.js';
import { POSITIONS, type Positions } from '../../vision/compact.js';
import type { Budget } from '../../vision/vision-model.js';
import { listOf, once } from './lists.js';
import type { Method } from './methods.js';

/** How much to keep. */
export interface Amount {
  /** `16`, `12.5%`. */
  readonly label: string;
  readonly budget: Budget;
}

/** The plan of an evaluation. */
export interface Plan {
  readonly methods: readonly Method[];
  readonly amounts: readonly Amount[];
  /** undefined: those that the model's family has by default. */
  readonly positions: readonly (Positions | undefined)[];
}

/** One row of the results. */
export interface Cell {
  readonly method: string;
  readonly keep: string;
  readonly positions: string;
}

/** The row of all visual tokens, which every question is also asked with. */
export const ALL = 'all';

/**
 * Counts and shares: `16,32,12.5%`.
 * @throws DesapError `ERR_VALUE`
 */
export function parseAmounts(text: string): Amount[] {
  const amounts = listOf('--keep', text).map(amountOf);
  once(
    '--keep',
    amounts.map(({ label }) => label),
  );
  return amounts;
}

function amountOf(text: string): Amount {
  const [, digits, percent] = /^(\d+(?:\.\d+)?)(%?)$/.exec(text) ?? [];
  const value = Number(digits);
  const label = `${value}${percent}`;
  if (percent === '%' && value > 0 && value <= 100) return { label, budget: { keepRatio: value / 100 } };
  if (percent === '' && Number.isInteger(value) && value > 0) return { label, budget: { keep: value } };
  throw mismatch('ERR_VALUE', '--keep', `'${text}'`, 'counts of visual tokens, or shares such as 12.5%');
}

/**
 * Forms of positions: `compact,original`; undefined for none.
 * @throws DesapError `ERR_VALUE`
 */
export function parsePositions(text: string | undefined): (Positions | undefined)[] {
  if (text === undefined) return [undefined];
  return listOf('--positions', text).map((form) => oneOf('--positions', form as Positions, POSITIONS));
}

/** All rows in their order: the methods of one amount and one form of positions stand together. */
export function cellsOf({ methods, amounts, positions }: Plan): Cell[] {
  return positions.flatMap((form) =>
    amounts.flatMap(({ label: keep }) => methods.map(({ label: method }) => cellOf(method, keep, form))),
  );
}

export function cellOf(method: string, keep: string, positions: Positions | undefined): Cell {
  return { method, keep, positions: positions ?? 'default' };
}

/** The name of a row in the file of answers. */
export function keyOf({ method, keep, positions }: Cell): string {
  return `${method} ${keep} ${positions}`;
}
