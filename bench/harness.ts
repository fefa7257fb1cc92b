/** Times contenders side by side: in turn, round by round, in one process; medians with their spread, and ratios pair by pair. */
import { cpus, loadavg } from 'node:os';
import { type Backend, type DeviceOptions, devices, openBackend } from '../src/index.js';

/** One way to compute the same thing. */
export interface Contender {
  readonly name: string;
  run(): unknown;
}

export interface Benchmark {
  /** The kernel's name, as everywhere. */
  readonly name: string;
  /** The shape, in words. */
  readonly shape: string;
  /** Work of one call in floating-point operations; 0 where that says nothing. */
  readonly flops: number;
  /** The first is the one that the others are compared with. */
  readonly contenders: readonly Contender[];
  /** The stages of a call in milliseconds, as what it gives tells them. Each becomes a result of its own. */
  stages?(given: unknown): Readonly<Record<string, number>>;
}

export interface Spread {
  readonly median: number;
  readonly low: number;
  readonly high: number;
}

export interface Row {
  readonly contender: string;
  /** Milliseconds per call. */
  readonly ms: Spread;
  /** How many times faster than the first contender, from the same rounds. */
  readonly ratio: Spread;
  readonly gflops: number | null;
}

export interface Result {
  readonly name: string;
  readonly shape: string;
  readonly rounds: number;
  readonly rows: readonly Row[];
}

/** The LLaVA-1.5 shape: CLIP ViT-L/14-336, 30 text tokens, 64 kept of 576. */
export const LLAVA = { rows: 577, patches: 576, width: 1024, heads: 16, projectionDim: 768, text: 30, keep: 64 };

/** One image of 448 x 448 in Qwen2.5-VL: 2 x 2 patches in each visual token. */
export const QWEN = { patches: 1024, width: 1280, heads: 16, side: 2 };

/** SigLIP base, 224 x 224. */
export const SIGLIP = { patches: 196, width: 768, heads: 12, mlpWidth: 3072 };

const MIN_SAMPLE_MS = 20;

/** Median, and how far from it the samples go: to the 10th and 90th percentile, or to others. */
export function spread(samples: readonly number[], tail = 0.1): Spread {
  const sorted = [...samples].sort((a, b) => a - b);
  const at = (q: number) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
  return { median: at(0.5), low: at(tail), high: at(1 - tail) };
}

/** Quotients of numbers that were sampled in the same rounds. */
export function ratios(numerators: readonly number[], denominators: readonly number[], tail?: number): Spread {
  return spread(
    numerators.map((numerator, round) => numerator / denominators[round]),
    tail,
  );
}

/** How often a sample has to repeat a call that is too short for the clock. Runs it once. */
export function repeatsOf(run: () => unknown): number {
  const start = performance.now();
  run();
  return Math.max(1, Math.ceil(MIN_SAMPLE_MS / (performance.now() - start)));
}

/** Runs a benchmark: every round times each contender once, repeating calls that are too short for the clock. Its result, then its stages'. */
export function measure({ name, shape, flops, contenders, stages }: Benchmark, rounds: number): Result[] {
  const repeats = contenders.map(({ run }) => repeatsOf(run));
  const times = contenders.map((): number[] => []);
  const parts = contenders.map((): Readonly<Record<string, number>>[] => []);
  for (let round = 0; round < rounds; round++)
    contenders.forEach(({ run }, c) => {
      let given: unknown;
      const start = performance.now();
      for (let i = 0; i < repeats[c]; i++) given = run();
      times[c].push((performance.now() - start) / repeats[c]);
      if (stages) parts[c].push(stages(given));
    });
  const result = (of: string, samples: readonly (readonly number[])[], work: number): Result => ({
    name: of,
    shape,
    rounds,
    rows: contenders.map(({ name: contender }, c) => {
      const ms = spread(samples[c]);
      return { contender, ms, ratio: ratios(samples[0], samples[c]), gflops: work > 0 ? work / ms.median / 1e6 : null };
    }),
  });
  const staged = (stage: string) => parts.map((samples) => samples.map((sample) => sample[stage]));
  return [
    result(name, times, flops),
    ...Object.keys(parts[0][0] ?? {}).map((stage) => result(`${name}, ${stage}`, staged(stage), 0)),
  ];
}

/** One way to open a device for a benchmark. */
export interface Contestant {
  readonly name: string;
  readonly options: DeviceOptions;
  readonly backend: Backend;
}

const PRECISIONS = ['fp32', 'fp16', 'bf16'] as const;

/** Whether benchmarks are of the GPUs (`npm run bench:cuda`) rather than of the CPU. */
export const ON_GPUS = process.argv.includes('--cuda');

/**
 * What every kernel is timed on: the reference first, then the CPU with one thread and with all; or, on GPUs, the CPU with
 * all threads and each GPU at each precision, from and to host memory.
 */
export function contestants(): Contestant[] {
  const cpu = devices().find(({ device }) => device === 'cpu');
  if (!cpu?.available) throw new Error(cpu?.reason ?? 'no CPU addon');
  const all = Math.min(cpus().length, 16);
  const open = (name: string, options: DeviceOptions) => ({ name, options, backend: openBackend(options) });
  const onCpu = (threads: number) =>
    open(`native, ${threads} thread${threads > 1 ? 's' : ''}`, { device: 'cpu', threads });
  if (!ON_GPUS)
    return [
      open('JavaScript reference', { device: 'reference' }),
      ...[...new Set([1, all])].map((count) => onCpu(count)),
    ];
  const gpus = devices().flatMap(({ device }) => (device.startsWith('cuda:') ? [device as `cuda:${number}`] : []));
  return [
    onCpu(all),
    ...gpus.flatMap((device) => PRECISIONS.map((precision) => open(`${device}, ${precision}`, { device, precision }))),
  ];
}

/** What a reader has to know to place the numbers. */
export function machine() {
  const cpu = devices().find(({ device }) => device === 'cpu');
  return {
    date: new Date().toISOString().slice(0, 10),
    processor: cpus()[0].model.trim(),
    cores: cpus().length,
    node: process.version,
    cpu: cpu?.available ? cpu.description : 'none',
    gpus: devices().flatMap((report) => ('memory' in report ? [report.description] : [])),
    loadAverage: Number(loadavg()[0].toFixed(2)),
  };
}

export const number = (x: number) => (x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x.toPrecision(3));
export const range = ({ median, low, high }: Spread) => `${number(median)} (${number(low)} - ${number(high)})`;

/** Results as a Markdown table. */
export function table(results: readonly Result[]): string {
  const lines = [
    '| kernel | contender | ms per call | times faster | GFLOP/s of the textbook operations |',
    '|---|---|---|---|---|',
  ];
  for (const { name, shape, rows } of results)
    rows.forEach(({ contender, ms, ratio, gflops }, i) => {
      const title = i === 0 ? `${name}: ${shape}` : '';
      lines.push(
        `| ${title} | ${contender} | ${range(ms)} | ${i === 0 ? '' : range(ratio)} | ${gflops === null ? '' : number(gflops)} |`,
      );
    });
  return lines.join('\n');
}
