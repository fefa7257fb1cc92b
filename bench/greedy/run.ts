/**
 * npm run bench:greedy [-- [--python PROGRAM] [--quick]]: the greedy selections, whole: from rows to picks. `dpp` (CDPruner) and
 * `farthest_points` (DivPrune) on one thread beside what else computes them, and the diversity of the head beside its analysis. Writes
 * bench/results/greedy.{json,md}. `--python` names a Python with numpy, and openvino_genai where its pruner is to compete; `--quick` tries
 * everything but the longest calls, takes rounds that others disturb too, and writes nothing. Linux only, for the numbers of /proc.
 */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { type Backend, Pruner } from '../../src/index.js';
import { head, tensor } from '../data.js';
import { readLoad } from '../foreign-load.js';
import { LLAVA, machine, number, range, ratios, type Spread, spread } from '../harness.js';
import { FOREIGN, type RoundLimits, runRounds, timed } from '../head/rounds.js';
import { temporaryFolder } from '../onnx-models.js';
import { beginAnew, inProcess, MAPPED, resident } from '../own-process.js';
import { type Contestant, call, type Kernel, keptOf, Others, oneThread, own, reference } from './contestants.js';
import { type Inputs, inputs, patchesOf, type Shape, writeInputs } from './inputs.js';
import { type OpenvinoPruner, openvinoPruner } from './openvino.js';

const CHILD = '--child';
const NUMPY = fileURLToPath(new URL('../peers/numpy_greedy.py', import.meta.url));
const OURS = 'desap, float32';

interface Case extends Shape {
  readonly rounds: number;
  /** Others need memory for all pairs of rows. */
  readonly hasOthers: boolean;
  /** The kernels whose reference ends within seconds. */
  readonly references: readonly Kernel[];
}

/** Qwen2-VL's width. */
const WIDTH = 1536;
const CASES: readonly Case[] = [
  { grid: [24, 24], width: WIDTH, rounds: 11, hasOthers: true, references: ['dpp', 'farthest'] },
  { grid: [32, 32], width: WIDTH, rounds: 11, hasOthers: true, references: ['dpp'] },
  { grid: [48, 60], width: WIDTH, rounds: 5, hasOthers: true, references: ['dpp'] },
  { grid: [64, 64], width: WIDTH, rounds: 5, hasOthers: true, references: [] },
  { grid: [128, 128], width: WIDTH, rounds: 3, hasOthers: false, references: [] },
];
const QUICK_CASES = CASES.slice(0, 2);

/** One row of a table. */
interface Row {
  readonly kernel: Kernel;
  readonly patches: number;
  readonly keep: number;
  readonly contestant: string;
  readonly ms: Spread;
  /** Times as long as ours, from the same rounds. */
  readonly ratio: Spread;
  /** Of its rows how many ours chooses too. */
  readonly common: number;
  /** MB that the first call adds to the process at its most. */
  readonly memory: number | null;
  readonly rounds: number;
  readonly dropped: number;
}

/** The programs of others that there are. */
interface Programs {
  readonly python: string | null;
  readonly openvino: OpenvinoPruner | null;
}

const limits = (rounds: number, isQuick: boolean): RoundLimits =>
  isQuick
    ? { rounds: 3, limit: 3, foreign: Number.POSITIVE_INFINITY }
    : { rounds, limit: 4 * rounds, foreign: FOREIGN };

async function compare(one: Case, kernel: Kernel, programs: Programs, isQuick: boolean): Promise<Row[]> {
  const patches = patchesOf(one);
  const keep = keptOf(patches);
  process.stderr.write(`${kernel}, ${keep} of ${patches} ...\n`);
  const [backend, slow] = [oneThread(), reference()];
  const given = inputs(one, 'smooth');
  using others = await enter(one, kernel, given, programs);
  const contestants: Contestant[] = [
    own(OURS, backend, kernel, given),
    own('the same, independent rows', backend, kernel, inputs(one, 'independent')),
    ...others.contestants,
    ...(one.references.includes(kernel) ? [own('JavaScript reference, float64', slow, kernel, given)] : []),
  ];
  const chosen = await Promise.all(contestants.map(async ({ picks }) => new Set(Array.from(await picks()))));
  const load = () => {
    const reading = readLoad();
    return reading && { ...reading, own: reading.own + others.processorTime };
  };
  const { samples, dropped } = await runRounds(
    contestants.map(({ time }) => time),
    limits(one.rounds, isQuick),
    load,
  );
  const memory = await inProcess<number>(import.meta.url, [CHILD, JSON.stringify({ one, kernel })], kernel, MAPPED);
  const rows = contestants.map(
    (contestant, c): Row => ({
      ...{ kernel, patches, keep, contestant: contestant.name },
      ms: spread(samples[c]),
      ratio: ratios(samples[c], samples[0]),
      common: [...chosen[0]].filter((row) => chosen[c].has(row)).length,
      memory: c === 0 ? memory : contestant.memory,
      ...{ rounds: samples[c].length, dropped },
    }),
  );
  for (const device of [backend, slow]) device.dispose();
  return rows;
}

async function enter(one: Case, kernel: Kernel, given: Inputs, { python, openvino }: Programs): Promise<Others> {
  const others = new Others();
  if (!one.hasOthers || python === null) return others;
  const folder = await mkdtemp(join(temporary, 'inputs-'));
  await writeInputs(folder, given);
  const patches = patchesOf(one);
  const told = [folder, `${patches}`, `${one.width}`];
  try {
    await others.numpy(python, NUMPY, [...told, `${keptOf(patches)}`], kernel);
    if (kernel === 'dpp' && openvino) await others.openvino(openvino.program, told);
    return others;
  } catch (error) {
    others[Symbol.dispose]();
    throw error;
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** In a process of its own: by how many MB our first call enlarges it at its most. */
function memoryOf(one: Case, kernel: Kernel): number {
  const backend = oneThread();
  call(backend, kernel, inputs({ grid: [2, 2], width: 8 }, 'independent'), 1);
  const given = inputs(one, 'smooth');
  const before = resident('VmRSS');
  beginAnew();
  call(backend, kernel, given, keptOf(patchesOf(one)));
  return resident('VmHWM') - before;
}

/** The head's diversity beside its analysis, at LLaVA-1.5's shape. */
interface Share {
  readonly what: string;
  readonly ms: Spread;
  /** Of the analysis, from the same rounds. */
  readonly share: Spread;
}

async function besideAnalysis(backend: Backend, isQuick: boolean): Promise<Share[]> {
  const { rows, patches, width, keep } = LLAVA;
  const pruner = await Pruner.load(head(), { device: 'cpu', threads: 1 });
  const hidden = tensor(27, rows, width);
  const x = tensor(28, patches, width);
  const seeds = Int32Array.from({ length: keep / 2 }, (_, i) => i * (patches / (keep / 2)));
  const calls: readonly (readonly [string, () => unknown])[] = [
    [`analysis of ${rows} rows`, () => pruner.analyzeSync(hidden).dispose()],
    [
      `${keep / 2} of ${patches} rows, ${keep / 2} seeds`,
      () => backend.sync.farthestPoints({ x, seeds, count: keep / 2 }),
    ],
    [`${keep} of ${patches} rows, no seeds`, () => backend.sync.farthestPoints({ x, count: keep })],
  ];
  for (const [, run] of calls) run();
  const { samples } = await runRounds(
    calls.map(
      ([, run]) =>
        () =>
          timed(run),
    ),
    limits(11, isQuick),
  );
  pruner.dispose();
  return calls.map(([what], c) => ({ what, ms: spread(samples[c]), share: ratios(samples[c], samples[0]) }));
}

function table(rows: readonly Row[]): string {
  const first = (row: Row, at: number) => at === 0 || rows[at - 1].patches !== row.patches;
  return [
    '| patches | kept | | ms | times as long as ours | rows in common with ours | first call, MB |',
    `|${'---|'.repeat(7)}`,
    ...rows.map((row, at) => {
      const size = first(row, at) ? `${row.patches} | ${row.keep}` : ' | ';
      const common = row.contestant.includes('independent') ? '' : row.common;
      const ratio = first(row, at) ? '' : range(row.ratio);
      const memory = row.memory === null ? '' : number(row.memory);
      return `| ${size} | ${row.contestant} | ${range(row.ms)} | ${ratio} | ${common} | ${memory} |`;
    }),
  ].join('\n');
}

async function main(): Promise<void> {
  const { quick, python = null } = parseArgs({
    options: { quick: { type: 'boolean', default: false }, python: { type: 'string' } },
  }).values;
  const openvino = python === null ? 'no Python was named (`--python`)' : openvinoPruner(python, temporary);
  const programs = { python, openvino: typeof openvino === 'string' ? null : openvino };
  const cases = quick ? QUICK_CASES : CASES;
  const rows: Row[] = [];
  for (const kernel of ['dpp', 'farthest'] as const)
    for (const one of cases) rows.push(...(await compare(one, kernel, programs, quick)));
  const backend = oneThread();
  const shares = await besideAnalysis(backend, quick);
  backend.dispose();

  const host = machine();
  const of = (kernel: Kernel) => table(rows.filter((row) => row.kernel === kernel));
  const dropped = rows.reduce((sum, row) => sum + (row.contestant === OURS ? row.dropped : 0), 0);
  const text = [
    '# Greedy selections, whole',
    '',
    `${host.processor}, ${host.cores} cores; ${host.cpu}; Node ${host.node}; ${host.date}; load average at the end ${host.loadAverage}.`,
    `From rows of width ${WIDTH} to picks, one thread each, 11 % kept. Medians of 3 to 11 rounds (10th to 90th percentile), contestants in turn, ratios`,
    `from the same rounds; ${dropped} rounds in which others took more than ${100 * FOREIGN} % of the machine were dropped. Rows are like their neighbours in the`,
    'grid, as those of images are; the time of ours depends on that, the others multiply all rows with each other. Memory: what the first call adds',
    'to its process at its most.',
    '',
    typeof openvino === 'string'
      ? `OpenVINO GenAI was not measured: ${openvino}.`
      : `OpenVINO GenAI ${openvino.version}: the pruner of its library, by itself, on one processor. It makes its matrix in bfloat16 where the processor has that, and the relevance from a text.`,
    ...(python === null ? ['numpy was not measured either.'] : []),
    '',
    '## Determinantal point process (`dpp`, CDPruner), L = 0.5 cos + 0.5 g cos g',
    '',
    of('dpp'),
    '',
    '## Farthest points without seeds (`farthest_points`, DivPrune)',
    '',
    of('farthest'),
    '',
    "## The diversity beside the head's analysis",
    '',
    `CLIP-L at 336 pixels, width ${LLAVA.width}, independent rows, one thread.`,
    '',
    '| | ms | of the analysis |',
    '|---|---|---|',
    ...shares.map(({ what, ms, share }, i) => `| ${what} | ${range(ms)} | ${i === 0 ? '' : range(share)} |`),
    '',
  ].join('\n');
  console.log(text);

  if (quick) return;
  const results = join(dirname(fileURLToPath(import.meta.url)), '..', 'results');
  await mkdir(results, { recursive: true });
  const data = { machine: host, openvino: programs.openvino?.version ?? null, rows, shares };
  await writeFile(join(results, 'greedy.json'), `${JSON.stringify(data, null, 1)}\n`);
  await writeFile(join(results, 'greedy.md'), text);
}

const [mode, task] = process.argv.slice(2);
const temporary = mode === CHILD ? '' : temporaryFolder();
if (mode === CHILD) {
  const { one, kernel } = JSON.parse(task);
  process.send!(memoryOf(one, kernel));
} else {
  await main();
}
