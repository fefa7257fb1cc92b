/** What is measured of a process between rounds, and whether it stays what it was. */
import { readdirSync, readFileSync } from 'node:fs';
import type { IntervalHistogram } from 'node:perf_hooks';

export interface Sample {
  /** Minutes since the first round. */
  readonly minutes: number;
  /** MB of the process. */
  readonly rss: number;
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

/** Collects garbage first, so that what is left is in use. Linux only, for the numbers of /proc. */
export async function sample(start: number, delay: IntervalHistogram): Promise<Sample> {
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
  /** The mean after the warm-up. */
  readonly mean: number;
  /** Growth in an hour, by least squares over the means of ten equal times: neighbouring samples are alike. */
  readonly perHour: number;
  /** Its standard error. */
  readonly error: number;
  readonly isFlat: boolean;
}

/** Parts of the time after the warm-up; each gives one point. */
const POINTS = 10;
/** Standard errors that a slope may be off by chance. */
const CHANCE = 3;
/** Growth over the whole run that is none, as a share of the mean: no program's memory is the same twice. */
const NOTHING = 0.01;

/** How a number grew. It is flat where the growth is within its error, or too small to matter over the time that was measured. */
export function trend(samples: readonly Sample[], name: keyof Sample): Trend {
  const points = Array.from({ length: POINTS }, (_, i) => {
    const part = samples.slice(
      Math.floor((i * samples.length) / POINTS),
      Math.floor(((i + 1) * samples.length) / POINTS),
    );
    return { x: average(part.map(({ minutes }) => minutes)) / 60, y: average(part.map((one) => one[name])) };
  }).filter(({ y }) => Number.isFinite(y));
  const [x, y] = [average(points.map((point) => point.x)), average(points.map((point) => point.y))];
  const spread = total(points.map((point) => (point.x - x) ** 2));
  const perHour = total(points.map((point) => (point.x - x) * (point.y - y))) / spread;
  const rest = total(points.map((point) => (point.y - y - perHour * (point.x - x)) ** 2));
  const error = Math.sqrt(rest / (points.length - 2) / spread);
  const grown = perHour * (points[points.length - 1].x - points[0].x);
  return { mean: y, perHour, error, isFlat: perHour <= CHANCE * error || grown <= NOTHING * y };
}

const total = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0);
const average = (values: readonly number[]) => total(values) / values.length;
