/**
 * npm run bench:methods [-- --quick]: what each method costs at LLaVA-1.5's shape, 64 of 576 patches kept, beside DeSAP by both presets: from
 * the hidden states that a vision tower hands out to the tokens that are kept. Random weights. A full run writes
 * bench/results/methods.{json,md}; `--quick` takes rounds that others disturb too, and writes nothing.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { Pruner } from '../src/index.js';
import { chooserOf, METHOD_NAMES, type RivalName } from '../src/methods/index.js';
import { type Matrix, matrixOf } from '../src/methods/matrix.js';
import type { MethodImage, TapName } from '../src/methods/method.js';
import { TappedBlock } from '../src/methods/tapped.js';
import { atRest } from '../src/vision/session.js';
import { withoutPreset } from '../src/vision/vision-choices.js';
import type { Preset } from '../src/vision/vision-model.js';
import { head, normal, tensor } from './data.js';
import { LLAVA, machine, range, ratios, type Spread, spread } from './harness.js';
import { FOREIGN, runRounds, timed } from './head/rounds.js';
import { projector, temporaryFolder } from './onnx-models.js';

const PARTS = ['maps', 'features', 'merging'] as const;
/** A part of a choice that is timed by itself. The rest is the selection. */
type Part = (typeof PARTS)[number];

/** Milliseconds of one choice. */
type Times = Readonly<Record<Part | 'selection' | 'whole', number>>;

/** Sums up what the parts of one choice take. */
class Clock {
  private readonly sums = new Map<Part, number>();

  async during<T>(part: Part, run: () => T | Promise<T>): Promise<T> {
    const start = performance.now();
    const result = await run();
    this.sums.set(part, (this.sums.get(part) ?? 0) + performance.now() - start);
    return result;
  }

  /** From now on the functions of an object count as a part. */
  watch(target: object, names: readonly string[], part: Part): void {
    const clock = this;
    for (const name of names) {
      const plain = Reflect.get(target, name) as (...args: unknown[]) => unknown;
      const watched = function (this: unknown, ...args: unknown[]) {
        return clock.during(part, () => plain.apply(this, args));
      };
      Object.defineProperty(target, name, { value: watched });
    }
  }

  async time(run: () => Promise<unknown>): Promise<Times> {
    this.sums.clear();
    const whole = await timed(run);
    const [maps, features, merging] = PARTS.map((part) => this.sums.get(part) ?? 0);
    return { maps, features, merging, selection: whole - maps - features - merging, whole };
  }
}

interface Contestant {
  readonly name: string;
  /** Hidden states beside those that enter the last block, which all read. */
  readonly taps: readonly TapName[];
  time(): Promise<Times>;
}

/** One number of threads. */
interface Table {
  readonly threads: number;
  readonly rows: readonly {
    readonly name: string;
    readonly taps: readonly TapName[];
    readonly times: Readonly<Record<keyof Times, Spread>>;
    /** Times as long as DeSAP as printed, from the same rounds. */
    readonly ratio: Spread;
  }[];
  /** Milliseconds that the kept rows take in the projector. */
  readonly projected: Spread;
  readonly rounds: number;
  readonly dropped: number;
}

/** Llama-7B's. */
const LANGUAGE_WIDTH = 4096;
const PRESETS: readonly Preset[] = ['paper', 'best'];
const { rows: N, patches: P, width: D, heads, projectionDim: E, text: T, keep: K } = LLAVA;
const HIDDEN_MB = (N * D * Float32Array.BYTES_PER_ELEMENT) / 1e6;

/** One image as every method reads it. */
function imageOf(pruner: Pruner, connect: (rows: Matrix) => Promise<Matrix>, clock: Clock): MethodImage {
  const hidden = matrixOf(tensor(27, N, D));
  const states = { data: hidden.data.subarray(D), rows: P, cols: D };
  const { ln1, q, k, v, postNorm, epsilon, visualProjection } = head();
  const weights = { heads, epsilon, ln1, q, k, v };
  const side = Math.sqrt(P);
  return {
    ...{ backend: pruner.backend, grid: { rows: side, columns: side }, classToken: true, patches: null },
    states: () => states,
    tap: async () => ({ hidden, weights }),
    features: () => clock.during('features', () => connect(states)),
    readOut: async () => ({ postNorm, epsilon, visualProjection: { data: visualProjection, rows: E, cols: D } }),
    text: async () => ({ data: normal(29, E), rows: 1, cols: E }),
    taskMap: async () => normal(30, P),
  };
}

function ours(pruner: Pruner, preset: Preset): Contestant {
  const [hidden, text] = [tensor(27, N, D), tensor(28, T, E)];
  const options = { ...withoutPreset({ preset }), keep: K };
  return {
    name: `desap, ${preset}`,
    taps: [],
    async time() {
      const start = performance.now();
      const analysis = await pruner.analyze(hidden);
      const maps = performance.now() - start;
      const { timings } = await analysis.prune(text, options);
      const whole = performance.now() - start;
      analysis.dispose();
      return { maps, features: 0, merging: timings.merge, selection: whole - maps - timings.merge, whole };
    },
  };
}

function rival(name: RivalName, image: MethodImage, clock: Clock): Contestant {
  const chooser = chooserOf(name);
  const taps = chooser.taps.filter((tap) => tap !== 'last');
  return { name, taps, time: () => clock.time(() => chooser.choose(image, K)) };
}

async function measure(threads: number, model: string, clock: Clock, isQuick: boolean): Promise<Table> {
  const pruner = await Pruner.load(head(), { device: 'cpu', threads });
  clock.watch(pruner.backend, ['merge'], 'merging');
  const session = await InferenceSession.create(model, atRest({ intraOpNumThreads: threads }));
  const connect = async ({ data, rows, cols }: Matrix) => {
    const outputs = await session.run({ patches: new Tensor('float32', data, [rows, cols]) });
    return matrixOf(outputs[session.outputNames[0]] as { data: Float32Array; dims: readonly number[] });
  };
  const image = imageOf(pruner, connect, clock);
  const contestants = [
    ...PRESETS.map((preset) => ours(pruner, preset)),
    ...METHOD_NAMES.filter((name): name is RivalName => name !== 'desap').map((name) => rival(name, image, clock)),
  ];
  const kept = { data: image.states().data.subarray(0, K * D), rows: K, cols: D };
  const samplers = [...contestants.map(({ time }) => time), () => clock.time(() => connect(kept))];
  for (const sample of samplers) await sample();
  const limits = isQuick
    ? { rounds: 3, limit: 3, foreign: Number.POSITIVE_INFINITY }
    : { rounds: 15, limit: 60, foreign: FOREIGN };
  const { samples, dropped } = await runRounds(samplers, limits);
  const of = (c: number, part: keyof Times) => samples[c].map((sample) => sample[part]);
  const parts = [...PARTS, 'selection', 'whole'] as const;
  const rows = contestants.map(({ name, taps }, c) => {
    const times = Object.fromEntries(parts.map((part) => [part, spread(of(c, part))])) as Record<keyof Times, Spread>;
    return { name, taps, times, ratio: ratios(of(c, 'whole'), of(0, 'whole')) };
  });
  const projected = spread(of(contestants.length, 'whole'));
  await session.release();
  pruner.dispose();
  return { threads, rows, projected, rounds: samples[0].length, dropped };
}

function tableText({ threads, rows, projected, rounds, dropped }: Table): string[] {
  const cell = (value: Spread) => (value.median === 0 ? '' : range(value));
  const kept = (taps: readonly TapName[]) =>
    taps.length === 0 ? '' : `${taps.map((tap) => `\`${tap}\``).join(', ')}: ${(taps.length * HIDDEN_MB).toFixed(1)}`;
  return [
    `## ${threads} thread${threads === 1 ? '' : 's'}`,
    '',
    `Medians of ${rounds} rounds (10th to 90th percentile), in turn; ${dropped} that others disturbed were dropped. The kept rows take ${range(projected)} ms in the projector.`,
    '',
    '| method | taps, MB | maps, ms | features, ms | selection, ms | merging, ms | whole, ms | times as long as desap, paper |',
    `|${'---|'.repeat(8)}`,
    ...rows.map(({ name, taps, times: { maps, features, selection, merging, whole }, ratio }, row) => {
      const times = [maps, features, selection, merging, whole].map(cell);
      return `| ${[name, kept(taps), ...times, row === 0 ? '' : range(ratio)].join(' | ')} |`;
    }),
    '',
  ];
}

const { quick } = parseArgs({ options: { quick: { type: 'boolean', default: false } } }).values;
const clock = new Clock();
clock.watch(TappedBlock, ['of'], 'maps');
clock.watch(TappedBlock.prototype, ['attention', 'valueAttention', 'meanKeys', 'meanValues', 'keys'], 'maps');
const folder = temporaryFolder();
const model = join(folder, 'projector.onnx');
const graph = projector(D, LANGUAGE_WIDTH);
await graph.writeWeights(join(folder, 'weights.data'));
await graph.writeModel(model, 'weights.data');
const tables: Table[] = [];
for (const threads of new Set([1, cpus().length])) tables.push(await measure(threads, model, clock, quick));

const host = machine();
const text = [
  "# What each method costs at LLaVA-1.5's shape",
  '',
  `${host.processor}, ${host.cores} cores; ${host.cpu}; Node ${host.node}; ${host.date}; load average at the end ${host.loadAverage}.`,
  `${K} of ${P} patches, width ${D}, random weights, each method with its defaults. From hidden states to kept tokens; the tower and the text's encoder are`,
  `in none of the times. Taps: hidden states beside those that enter the last block, which the tower has to hand out too. Maps: what is made of`,
  "the taps, class attention folded; DeSAP's analysis. Features: the projector, 1024 to 4096, over all patches (onnxruntime-node), where a method",
  'reads them. Merging: the kernel that brings other patches to the nearest kept one; what methods gather in their own ways is in the selection,',
  'as are the relevance and the Gram matrix. Behind it, the kept rows go through the projector, but for `vscan`, which merges behind it.',
  '',
  ...tables.flatMap(tableText),
].join('\n');
console.log(text);
if (!quick) {
  const results = join(dirname(fileURLToPath(import.meta.url)), 'results');
  await mkdir(results, { recursive: true });
  await writeFile(join(results, 'methods.json'), `${JSON.stringify({ machine: host, tables }, null, 1)}\n`);
  await writeFile(join(results, 'methods.md'), text);
}
