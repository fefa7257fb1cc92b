/** How the head's cost grows with the work: rows, images, kept patches, text tokens; further questions; what a call in flight takes. */
import { type HeadWeights, Pruner } from '../../src/index.js';
import { float32, type Tensor } from '../../src/tensor.js';
import { randomHead } from '../../test/support.js';
import { tensor } from '../data.js';
import { LLAVA, ratios, repeatsOf, type Spread, spread } from '../harness.js';
import { besidePeak, peakShares } from './beside-peak.js';
import { instructionSets, type Question } from './contestants.js';
import { type Blocked, eventLoopBlocked } from './event-loop.js';
import { scratchMegabytes } from './memory.js';
import { type Peaks, peaksOf } from './peaks.js';
import { FOREIGN, type RoundLimits, runRounds, timed } from './rounds.js';
import { type HeadShape, headWork } from './work.js';

export const SCALING_THREADS = 2;

const BASE: HeadShape = { ...LLAVA, classToken: true };
/** K of as many patches as 64 of 576. */
const ninth = (patches: number) => Math.round(patches / 9);
/** Qwen2.5-VL's extents: wider, no class token, and many more rows. */
const qwen = (rows: number): HeadShape => {
  return {
    rows,
    width: 1280,
    heads: 16,
    projectionDim: 1280,
    text: LLAVA.text,
    keep: ninth(rows),
    classToken: false,
  };
};
const QWEN_ROWS = [4096, 16384];

/** Work in GFLOP from which a call is long enough to be a sample, and too long for many of them. */
const LONG = 80;
const SHORT_LIMITS: RoundLimits = { rounds: 9, limit: 20, foreign: FOREIGN };
const LONG_LIMITS: RoundLimits = { rounds: 3, limit: 5, foreign: FOREIGN };
const QUICK_LIMITS: RoundLimits = { rounds: 2, limit: 2, foreign: Number.POSITIVE_INFINITY };

/** Series, as the table and the plot name them. */
export const SERIES = {
  rows: 'rows N',
  qwen: 'rows N, width 1280, no class token',
  batch: 'images of 577 rows',
  kept: 'kept patches K',
  text: 'text tokens T',
  models: 'model',
} as const;

interface Workload {
  readonly series: keyof typeof SERIES;
  readonly x: number | string;
  readonly images: number;
  readonly shape: HeadShape;
}

export interface Point extends Workload {
  readonly gflop: number;
  readonly rounds: number;
  /** Milliseconds per call. */
  readonly ms: Spread;
  readonly nanosecondsPerRow: number;
  readonly shares: Record<keyof Peaks, Spread>;
  /** Share of the peak by that of one image of LLaVA-1.5 in the same rounds; null where that was not among them. */
  readonly efficiency: Spread | null;
}

export interface Scaling {
  readonly points: readonly Point[];
  readonly dropped: number;
  readonly question: { readonly analyze: Spread; readonly question: Spread; readonly ratio: Spread };
  readonly blocked: readonly Blocked[];
  /** Megabytes by number of rows; null where the system does not tell. */
  readonly scratch: readonly { readonly rows: number; readonly width: number; readonly megabytes: number | null }[];
}

function workloads(): Workload[] {
  const one = (series: keyof typeof SERIES, x: number, change: Partial<HeadShape>): Workload => {
    return { series, x, images: 1, shape: { ...BASE, ...change } };
  };
  const images = (series: keyof typeof SERIES, x: number | string, count: number, rows: number): Workload => {
    return { series, x, images: count, shape: { ...BASE, rows, keep: ninth(rows - 1) } };
  };
  const powers = (from: number, to: number) =>
    Array.from({ length: Math.log2(to / from) + 1 }, (_, i) => from * 2 ** i);
  return [
    images('models', 'LLaVA-1.5, 1 x 577', 1, 577),
    images('models', 'LLaVA-NeXT, 5 x 577', 5, 577),
    images('models', 'Video-LLaVA, 8 x 257', 8, 257),
    ...powers(64, 16384).map((rows) => one('rows', rows, { rows, keep: ninth(rows - 1) })),
    ...QWEN_ROWS.map((rows) => one('qwen', rows, qwen(rows))),
    ...powers(1, 16).map((count) => images('batch', count, count, 577)),
    ...powers(8, 512).map((keep) => one('kept', keep, { keep })),
    ...powers(1, 128).map((text) => one('text', text, { text })),
  ];
}

/** Measures everything. `quick`: two rounds of the shorter calls, whatever else the machine does. */
export async function scaling(asked: Question, quick: boolean): Promise<Scaling> {
  const all = workloads().map((workload) => ({
    ...workload,
    gflop: (workload.images * headWork(workload.shape)) / 1e9,
  }));
  const [brief, lengthy] = [all.filter(({ gflop }) => gflop < LONG), all.filter(({ gflop }) => gflop >= LONG)];
  const short = await measure(brief, quick ? QUICK_LIMITS : SHORT_LIMITS);
  const long = quick ? { points: [], dropped: 0 } : await measure(lengthy, LONG_LIMITS);
  const scratch = [];
  for (const shape of quick ? [BASE] : [BASE, ...QWEN_ROWS.map(qwen)])
    scratch.push({ rows: shape.rows, width: shape.width, megabytes: await scratchMegabytes(shape) });
  return {
    points: [...short.points, ...long.points],
    dropped: short.dropped + long.dropped,
    question: await furtherQuestion(asked, quick),
    blocked: await eventLoopBlocked(asked),
    scratch,
  };
}

async function measure(
  list: readonly (Workload & { gflop: number })[],
  limits: RoundLimits,
): Promise<{ points: Point[]; dropped: number }> {
  const [isa] = instructionSets();
  using calls = await Calls.open(list.map(({ shape }) => shape));
  const samplers = list.map(({ images, shape }) => {
    const run = calls.call(images, shape);
    const repeats = repeatsOf(run);
    return () =>
      besidePeak(
        () => timed(run, repeats),
        () => peaksOf('float32', isa, SCALING_THREADS),
      );
  });
  const { samples, dropped } = await runRounds(samplers, limits);
  const shares = (of: keyof Peaks) => list.map(({ gflop }, i) => peakShares(gflop * 1e9, samples[i], of));
  const [registers, loaded] = [shares('registers'), shares('loaded')];
  const base = list.findIndex(({ series }) => series === 'models');
  const points = list.map((workload, i): Point => {
    const ms = spread(samples[i].map((sample) => sample.ms));
    return {
      ...workload,
      rounds: samples[i].length,
      ms,
      nanosecondsPerRow: (1e6 * ms.median) / (workload.images * workload.shape.rows),
      shares: { registers: spread(registers[i]), loaded: spread(loaded[i]) },
      efficiency: base < 0 ? null : ratios(registers[i], registers[base]),
    };
  });
  return { points, dropped };
}

/** Inputs and pruners for many shapes; smaller images are the first rows of the largest. */
class Calls implements Disposable {
  private readonly pruners = new Map<number, Pruner>();
  private readonly rows = new Map<number, Tensor>();

  static async open(shapes: readonly HeadShape[]): Promise<Calls> {
    const calls = new Calls();
    for (const { width, heads, projectionDim, classToken } of shapes) {
      if (calls.pruners.has(width)) continue;
      const weights: HeadWeights = randomHead(1, { width, heads, projectionDim, classToken });
      calls.pruners.set(width, await Pruner.load(weights, { device: 'cpu', threads: SCALING_THREADS }));
      const most = Math.max(...shapes.filter((shape) => shape.width === width).map(({ rows }) => rows));
      calls.rows.set(width, tensor(1, most, width));
    }
    return calls;
  }

  call(images: number, { rows, width, projectionDim, text, keep }: HeadShape): () => unknown {
    const pruner = this.pruners.get(width)!;
    const data = (this.rows.get(width)!.data as Float32Array).subarray(0, rows * width);
    const hidden = Array.from({ length: images }, () => float32(data, [rows, width]));
    const question = tensor(2, text, projectionDim);
    return () => pruner.pruneBatchSync(hidden, question, { keep });
  }

  [Symbol.dispose](): void {
    for (const pruner of this.pruners.values()) pruner.dispose();
  }
}

/** A question about an image that was analysed before, beside that analysis. */
async function furtherQuestion({ hidden, keep }: Question, quick: boolean): Promise<Scaling['question']> {
  const weights = randomHead(1, BASE);
  using pruner = await Pruner.load(weights, { device: 'cpu', threads: SCALING_THREADS });
  using image = pruner.analyzeSync(hidden);
  const questions = Array.from({ length: 16 }, (_, i) => tensor(100 + i, BASE.text, BASE.projectionDim));
  let asked = 0;
  const ask = () => image.pruneSync(questions[asked++ % questions.length], { keep });
  const repeats = repeatsOf(ask);
  const samplers = [() => timed(() => pruner.analyzeSync(hidden).dispose()), () => timed(ask, repeats)];
  // These rounds are too short for the ticks that foreign load is counted in.
  const limits = { rounds: 31, limit: 31, foreign: Number.POSITIVE_INFINITY };
  const { samples } = await runRounds(samplers, quick ? QUICK_LIMITS : limits);
  const [analyze, question] = samples;
  return { analyze: spread(analyze), question: spread(question), ratio: ratios(analyze, question) };
}
