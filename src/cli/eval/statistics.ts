/** A mean of scores and how far it may be off. */
export interface Estimate {
  readonly mean: number;
  /** Standard error of the mean; null for a single score, which says nothing of how scores vary. */
  readonly error: number | null;
}

/**
 * mean = sum x / n, error = sqrt(sum (x - mean)^2 / (n - 1) / n).
 * @param scores at least one
 */
export function estimate(scores: readonly number[]): Estimate {
  const n = scores.length;
  const mean = sum(scores) / n;
  if (n < 2) return { mean, error: null };
  const squares = sum(scores.map((score) => (score - mean) ** 2));
  return { mean, error: Math.sqrt(squares / (n - 1) / n) };
}

/**
 * The mean of what each question gains, with its own error: what makes a question easy or hard for both falls out of it.
 * @param others as many scores, of the same questions
 */
export function pairedDifference(scores: readonly number[], others: readonly number[]): Estimate {
  return estimate(scores.map((score, i) => score - others[i]));
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
