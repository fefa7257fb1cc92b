/** What an evaluation found, and how its numbers are written. */
import type { Skipped } from './journal.js';
import type { Row } from './results.js';
import type { Estimate } from './statistics.js';

export interface Report {
  /** Name of the model's folder. */
  readonly model: string;
  /** The file of questions. */
  readonly questions: string;
  readonly device: string;
  /** When it was made. */
  readonly date: string;
  /** How many questions count. */
  readonly answered: number;
  /** The method that the others are compared with. */
  readonly first: string;
  /** The first row is that of all visual tokens. */
  readonly rows: readonly Row[];
  readonly skipped: readonly Skipped[];
}

/** The parts of the time that any row has, in the order of the work. */
export function partNames(rows: readonly Row[]): string[] {
  const [whole, ...pruned] = rows;
  return [...new Set([...pruned, whole].flatMap(({ ms }) => Object.keys(ms)))];
}

/** What latencies end with: that of a model that is run elsewhere includes its whole answer. */
export function latencyEnd(rows: readonly Row[]): string {
  return partNames(rows).includes('generate') ? 'the end of the answer' : 'the first token';
}

/** `61.75 ± 2.4`, of a share. */
export function percent({ mean, error }: Estimate): string {
  return (100 * mean).toFixed(2) + margin(error);
}

/** `+4.75 ± 1.8`, of a difference of shares; empty for none. */
export function signed(difference: Estimate | null): string {
  if (difference === null) return '';
  const { mean, error } = difference;
  return `${mean < 0 ? '' : '+'}${(100 * mean).toFixed(2)}${margin(error)}`;
}

/** A count of tokens; means have a decimal. */
export function count(tokens: number): string {
  return tokens.toFixed(Number.isInteger(tokens) ? 0 : 1);
}

function margin(error: number | null): string {
  return error === null ? '' : ` ± ${(100 * error).toFixed(1)}`;
}

/** What the numbers are. */
export function note({ answered, device }: Report): string {
  return `${answered} question${answered === 1 ? '' : 's'} on: ${device}. ± is the standard error, of a difference that of its pairs. The times of the parts are medians in milliseconds.`;
}

/** What was skipped, and why. */
export function skippedLines(skipped: readonly Skipped[]): string[] {
  return skipped.map(({ line, skipped: why }) => `line ${line}: ${why}`);
}
