/** Samples in turn, round by round, with an eye on what else the machine does. */
import { foreignShare, readLoad } from '../foreign-load.js';

export interface RoundLimits {
  /** Rounds wanted. */
  readonly rounds: number;
  /** Rounds at most, dropped ones included. */
  readonly limit: number;
  /** A round in which others took a larger share of the cores' time is dropped. */
  readonly foreign: number;
}

/** The share that is usually allowed. */
export const FOREIGN = 0.04;

export interface Rounds<T> {
  /** The samples of each sampler, by round that counts; there is at least one. */
  readonly samples: readonly (readonly T[])[];
  readonly dropped: number;
  /** The share that others took, by round that counts; null where the system does not tell. */
  readonly foreign: readonly number[] | null;
}

/** Samples every sampler once per round; every other round goes backwards, so that none always follows the same one. */
export async function runRounds<T>(
  samplers: readonly (() => T | Promise<T>)[],
  { rounds, limit, foreign }: RoundLimits,
  load = readLoad,
): Promise<Rounds<T>> {
  const samples = samplers.map((): T[] => []);
  const shares: number[] = [];
  let counted = 0;
  let round = 0;
  for (; counted < rounds && round < limit; round++) {
    const order = samplers.map((_, i) => (round % 2 === 0 ? i : samplers.length - 1 - i));
    const taken: T[] = [];
    const before = load();
    for (const s of order) taken[s] = await samplers[s]();
    const after = load();
    const share = before && after && foreignShare(before, after);
    if (share !== null) {
      if (share > foreign) continue;
      shares.push(share);
    }
    counted++;
    taken.forEach((sample, s) => {
      samples[s].push(sample);
    });
  }
  if (counted === 0)
    throw new Error(`others took more than ${100 * foreign} % of the machine in all of ${limit} rounds`);
  return { samples, dropped: round - counted, foreign: shares.length > 0 ? shares : null };
}

/** Milliseconds of a call, repeated so often; it may be asynchronous. */
export async function timed(run: () => unknown, repeats = 1): Promise<number> {
  const start = performance.now();
  for (let i = 0; i < repeats; i++) await run();
  return (performance.now() - start) / repeats;
}
