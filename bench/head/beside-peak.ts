/** Calls timed beside the processor's multiply-add peak. `npm run bench:head` builds the addon that measures it. */
import { createRequire } from 'node:module';
import { timed } from './rounds.js';

/** GFLOP/s of multiply-adds in registers on this many threads at once. */
const { multiplyAddPeak } = createRequire(import.meta.url)('../peak/build/Release/peak.node') as {
  multiplyAddPeak(isa: string, threads: number): number;
};

/** One call and the processor's peak at that time: it moves with the clock. */
export interface Sample {
  readonly ms: number;
  /** GFLOP/s, the mean of right before and right after. */
  readonly peak: number;
}

/** Samples a call beside the peak on as many threads. */
export async function besidePeak(run: () => unknown, isa: string, threads: number, repeats = 1): Promise<Sample> {
  const before = multiplyAddPeak(isa, threads);
  const ms = await timed(run, repeats);
  return { ms, peak: (before + multiplyAddPeak(isa, threads)) / 2 };
}

/** Share of the peak that calls of this much work reached, by round. */
export function peakShares(work: number, samples: readonly Sample[]): number[] {
  return samples.map(({ ms, peak }) => work / (ms * 1e6) / peak);
}
