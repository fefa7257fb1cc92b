/** Calls timed beside the processor's peaks. */
import type { Peaks } from './peaks.js';

/** One call and the peaks at that time, means of right before and right after: they move with the clock and with neighbours. */
export interface Sample extends Peaks {
  readonly ms: number;
}

/** Takes a sample: the milliseconds that `time` tells, between two measurements of the peaks. */
export async function besidePeak(time: () => Promise<number>, peaks: () => Peaks): Promise<Sample> {
  const before = peaks();
  const ms = await time();
  const after = peaks();
  const mean = (key: keyof Peaks) => (before[key] + after[key]) / 2;
  return { ms, registers: mean('registers'), loaded: mean('loaded') };
}

/** Share of one of the peaks that calls of this much work reached, by round. */
export function peakShares(work: number, samples: readonly Sample[], of: keyof Peaks): number[] {
  return samples.map((sample) => work / (sample.ms * 1e6) / sample[of]);
}
