/** What is measured of a process between rounds, and whether it stays what it was. */
import { readdirSync, readFileSync } from 'node:fs';
import type { IntervalHistogram } from 'node:perf_hooks';

export interface Sample {
  /** Minutes since the first round. */
  readonly minutes: number;
  /** MB of the process. */
  readonly rss: number;
  /** MB that native code has of malloc: what was freed and stays with malloc is not counted. */
  readonly native: number;
  /** MB of JavaScript's own objects. */
  readonly heap: number;
  /** MB of memory outside of the heap that JavaScript knows of. */
  readonly external: number;
  /** Open files, sockets and so on. */
  readonly descriptors: number;
  readonly threads: number;
  /** What keeps the event loop alive. */
  readonly handles: number;
  /** Milliseconds by which the event loop was late since the sample before: half of the time, and at most one time in a hundred. */
  readonly delay: number;
  readonly lateDelay: number;
}

const MB = 2 ** 20;

/** Collects garbage first, so that what is left is in use. Linux only, for the numbers of /proc. @param inUse of malloc/malloc.cc */
export async function sample(start: number, delay: IntervalHistogram, inUse: () => number): Promise<Sample> {
  const [median, late] = [delay.percentile(50) / 1e6, delay.percentile(99) / 1e6];
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 20)); // finalizers and threads that end have their turn
  }
  const { rss, heapUsed, external } = process.memoryUsage();
  const threads = Number(/^Threads:\s*(\d+)/m.exec(readFileSync('/proc/self/status', 'latin1'))?.[1]);
  delay.reset();
  return {
    minutes: (performance.now() - start) / 60_000,
    rss: rss / MB,
    native: inUse() / MB,
    heap: heapUsed / MB,
    external: external / MB,
    descriptors: readdirSync('/proc/self/fd').length,
    threads,
    handles: process.getActiveResourcesInfo().length,
    delay: median,
    lateDelay: late,
  };
}

export interface Trend {
  /** The median after the warm-up. */
  readonly median: number;
  /** Growth over the time after the warm-up: of a line through medians. */
  readonly growth: number;
  readonly perHour: number;
  /** What `growth` may be at most. */
  readonly bound: number;
  readonly isFlat: boolean;
}

/** What has to stay: all but the delay of the event loop, which tells of other programs too. */
export type Steady = Exclude<keyof Sample, 'minutes' | 'delay' | 'lateDelay'>;

/** Growth that is none: V8 compiles code for hundreds of rounds, and malloc's free places move; of what is counted, nothing. */
export const BOUNDS: Readonly<Record<Steady, number>> = {
  ...{ rss: 16, native: 1, heap: 2, external: 0.5 },
  ...{ descriptors: 0.5, threads: 0.5, handles: 0.5 },
};

/** Parts of the time after the warm-up. */
const PARTS = 10;

/**
 * How a number grew. Each part of the time gives the median of its samples, and any two of these points a slope; the median of the slopes is
 * the growth (Theil and Sen). Single samples move no point, and one step near either end no slope. Of resident memory each part gives the
 * least.
 *
 * @param allowed growth that others are known to cause, beside the bound
 */
export function trend(samples: readonly Sample[], name: Steady, allowed = 0): Trend {
  const points = Array.from({ length: PARTS }, (_, i) => {
    const at = (part: number) => Math.floor((part * samples.length) / PARTS);
    const part = samples.slice(at(i), at(i + 1));
    // Resident memory moves with the load of the machine. What leaks is resident at its least too.
    const typical = name === 'rss' ? Math.min : (...values: number[]) => median(values);
    return { x: median(part.map(({ minutes }) => minutes)) / 60, y: typical(...part.map((one) => one[name])) };
  });
  const slopes = points.flatMap((a, i) => points.slice(i + 1).map((b) => (b.y - a.y) / (b.x - a.x)));
  const perHour = median(slopes);
  const growth = (perHour * (samples[samples.length - 1].minutes - samples[0].minutes)) / 60;
  const bound = BOUNDS[name] + allowed;
  return { median: median(samples.map((one) => one[name])), growth, perHour, bound, isFlat: growth <= bound };
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[Math.floor((sorted.length - 1) / 2)] + sorted[Math.ceil((sorted.length - 1) / 2)]) / 2;
}
