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
import type { MethodImage, MethodPart, TapName } from '../src/methods/method.js';
import { Stopwatch } from '../src/stopwatch.js';
import { atRest } from '../src/vision/session.js';
import { withoutPreset } from '../src/vision/vision-choices.js';
import type { Preset, VisionPruneOptions } from '../src/vision/vision-model.js';
import { head, normal, tensor } from './data.js';
import { LLAVA, machine, range, ratios, type Spread, spread } from './harness.js';
import { FOREIGN, runRounds, timed } from './head/rounds.js';
import { projector, temporaryFolder } from './onnx-models.js';

const PARTS = ['maps', 'features', 'merging'] as const;
/** A part of a choice that is timed by itself. The rest is the selection. */
type Part = (typeof PARTS)[number];

/** Milliseconds of one choice. */
type Times = Readonly<Record<Part | 'selection' | 'whole', number>>;

type Watch = Stopwatch<MethodPart | 'features'>;

/** One choice, whose parts are told apart by a stopwatch. */
async function timesOf(run: (watch: Watch) => Promise<unknown>): Promise<Times> {
  const watch: Watch = new Stopwatch();
  const whole = await timed(() => run(watch));
  const [maps, features, merging] = (['taps', 'features', 'merge'] as const).map(watch.spent);
  return { maps, features, merging, selection: whole - maps - features - merging, whole };
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

type Connect = (rows: Matrix) => Promise<Matrix>;

/** One image as every method reads it. */
function imageOf({ backend }: Pruner, connect: Connect): (watch: Watch) => MethodImage {
  const hidden = matrixOf(tensor(27, N, D));
  const states = { data: hidden.data.subarray(D), rows: P, cols: D };
  const { ln1, q, k, v, postNorm, epsilon, visualProjection } = head();
  const weights = { heads, epsilon, ln1, q, k, v };
  const side = Math.sqrt(P);
  const end = normal(29, E);
  const map = normal(30, P);
  return ({ timed }) => ({
    ...{ backend, grid: { rows: side, columns: side }, classToken: true, patches: null, timed },
    states: () => states,
    tap: async () => ({ hidden, weights }),
    features: () => timed('features', () => connect(states)),
    readOut: async () => ({ postNorm, epsilon, visualProjection: { data: visualProjection, rows: E, cols: D } }),
    text: async () => ({ data: end, rows: 1, cols: E }),
    taskMap: async () => map,
  });
}

function ours(pruner: Pruner, preset: Preset, connect: Connect): Contestant {
  const [hidden, text] = [tensor(27, N, D), tensor(28, T, E)];
  const states = { data: matrixOf(hidden).data.subarray(D), rows: P, cols: D };
  const { distances, ...how } = withoutPreset<VisionPruneOptions>({ preset });
  return {
    name: `desap, ${preset}`,
    taps: [],
    async time() {
      const start = performance.now();
      const analysis = await pruner.analyze(hidden);
      const analyzed = performance.now();
      const rows = distances === 'projected' ? await connect(states) : null;
      const connected = performance.now();
      const projected = rows && { distances: { data: rows.data, dims: [rows.rows, rows.cols] } };
      const { timings } = await analysis.prune(text, { ...how, ...projected, keep: K });
      const end = performance.now();
      analysis.dispose();
      const [maps, features, merging] = [analyzed - start, connected - analyzed, timings.merge];
      return { maps, features, merging, selection: end - connected - merging, whole: end - start };
    },
  };
}

function rival(name: RivalName, image: (watch: Watch) => MethodImage): Contestant {
  const chooser = chooserOf(name);
  const taps = chooser.taps.filter((tap) => tap !== 'last');
  return { name, taps, time: () => timesOf((watch) => chooser.choose(image(watch), K)) };
}

async function measure(threads: number, model: string, isQuick: boolean): Promise<Table> {
  const pruner = await Pruner.load(head(), { device: 'cpu', threads });
  const session = await InferenceSession.create(model, atRest({ intraOpNumThreads: threads }));
  const connect: Connect = async ({ data, rows, cols }) => {
    const outputs = await session.run({ patches: new Tensor('float32', data, [rows, cols]) });
    return matrixOf(outputs[session.outputNames[0]] as { data: Float32Array; dims: readonly number[] });
  };
  const image = imageOf(pruner, connect);
  const contestants = [
    ...PRESETS.map((preset) => ours(pruner, preset, connect)),
    ...METHOD_NAMES.filter((name): name is RivalName => name !== 'desap').map((name) => rival(name, image)),
  ];
  const kept = { data: matrixOf(tensor(27, K, D)).data, rows: K, cols: D };
  const samplers = [...contestants.map(({ time }) => time), () => timesOf(() => connect(kept))];
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
const folder = temporaryFolder();
const model = join(folder, 'projector.onnx');
const graph = projector(D, LANGUAGE_WIDTH);
await graph.writeWeights(join(folder, 'weights.data'));
await graph.writeModel(model, 'weights.data');
const tables: Table[] = [];
for (const threads of new Set([1, cpus().length])) tables.push(await measure(threads, model, quick));

const host = machine();
const text = [
  "# What each method costs at LLaVA-1.5's shape",
  '',
  `${host.processor}, ${host.cores} cores; ${host.cpu}; Node ${host.node}; ${host.date}; load average at the end ${host.loadAverage}.`,
  `${K} of ${P} patches, width ${D}, random weights, each method with its defaults. From hidden states to kept tokens; the tower and the text's encoder are`,
  `in none of the times. Taps: hidden states beside those that enter the last block, which the tower has to hand out too. Maps: what is made of`,
  "the taps, class attention folded; DeSAP's analysis. Features: the projector, 1024 to 4096, over all patches (onnxruntime-node), where a method",
  'or the preset, reads them. Merging: what brings other patches to kept ones, also where a method does it in its own way. The relevance and the',
  'Gram matrix are in the selection. Behind it, the kept rows go through the projector, but for `vscan`, which merges behind it.',
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
