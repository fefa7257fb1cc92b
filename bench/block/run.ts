/**
 * npm run bench:block [-- --quick] [--rounds=3]: what the last block's decoupled attention and saliency cost, at the width of Qwen2.5-VL and of SigLIP
 * so400m: the package's kernels against copied nodes of ONNX in the encoder's own session, each beside the encoder by itself. Every
 * contender has a process of its own. Linux only, for the numbers of /proc. A full run writes bench/results/block.{json,md}; `--quick`
 * tries everything out at a small size and writes nothing.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { machine, range, type Spread, spread } from '../harness.js';
import { temporaryFolder } from '../onnx-models.js';
import { inProcess, MAPPED } from '../own-process.js';
import { type Report, type Run, report, type Task, WAYS, type Way } from './contenders.js';
import { type AttentionForm, type EncoderShape, encoder, QWEN, SO400M } from './models.js';

const QUICK = process.argv.includes('--quick');
const CHILD = '--child';
const ROUNDS = Number(/--rounds=(\d+)/.exec(process.argv.join(' '))?.[1] ?? (QUICK ? 1 : 3));

interface Case {
  readonly shape: EncoderShape;
  readonly patches: number;
  readonly form: AttentionForm;
  readonly ways: readonly Way[];
  /** Runs of a process that count. */
  readonly runs: number;
}

const small = (shape: EncoderShape): EncoderShape => ({
  ...shape,
  width: 128,
  heads: 4,
  intermediate: 256,
  languageWidth: 64,
});
const ours: readonly Way[] = ['plain', 'ours'];

/** Scores of 16384 patches with each other take 17 GB for each attention: there the encoder's own attention has to be fused. */
const CASES: readonly Case[] = QUICK
  ? [
      { shape: small(QWEN), patches: 256, form: 'nodes', ways: WAYS, runs: 2 },
      { shape: small(SO400M), patches: 256, form: 'nodes', ways: WAYS, runs: 2 },
      { shape: small(QWEN), patches: 1024, form: 'fused', ways: ours, runs: 2 },
    ]
  : [
      { shape: QWEN, patches: 1024, form: 'nodes', ways: WAYS, runs: 5 },
      { shape: QWEN, patches: 4096, form: 'nodes', ways: WAYS, runs: 2 },
      { shape: QWEN, patches: 16384, form: 'fused', ways: ours, runs: 1 },
      { shape: SO400M, patches: 729, form: 'nodes', ways: WAYS, runs: 5 },
      { shape: SO400M, patches: 4096, form: 'nodes', ways: WAYS, runs: 2 },
    ];

/** One row of the table: a contender in one case. */
interface Row {
  readonly model: string;
  readonly patches: number;
  readonly form: AttentionForm;
  readonly way: Way;
  /** Milliseconds by the clock. */
  readonly clock: Spread;
  /** Milliseconds of processor time. */
  readonly whole: Spread;
  /** Beyond the encoder by itself, pair by pair of rounds. */
  readonly beyond: Spread | null;
  readonly block: Spread | null;
  readonly connector: Spread | null;
  /** MB: once open, and what is added to that while it runs; the same beyond the encoder by itself. */
  readonly opened: number;
  readonly running: number;
  readonly beyondOpened: number | null;
  readonly beyondRunning: number | null;
  readonly growth: number | null;
  /** Whether it keeps what the copied nodes keep; null where these were not run. */
  readonly isSame: boolean | null;
}

async function measure(one: Case, folder: string): Promise<Row[]> {
  const { shape, patches, form, ways, runs } = one;
  const path = join(folder, 'encoder.onnx');
  const model = encoder(shape, patches, form);
  await model.writeWeights(join(folder, 'weights.data'));
  await model.writeModel(path, 'weights.data');
  const reports = new Map(ways.map((way): [Way, Report[]] => [way, []]));
  for (let round = 0; round < ROUNDS; round++)
    for (const [way, list] of reports) {
      process.stderr.write(`${shape.name}, ${patches} patches, round ${round + 1} of ${ROUNDS}: ${way} ...\n`);
      const task: Task = { way, path, shape, patches, runs };
      list.push(await inProcess(import.meta.url, [CHILD, JSON.stringify(task)], way, MAPPED));
    }
  const fastest = (way: Way) => reports.get(way)!.map((one) => one.runs.reduce((a, b) => (a.whole <= b.whole ? a : b)));
  const largest = (way: Way, of: (one: Report) => number) => Math.max(...reports.get(way)!.map(of));
  const opened = (way: Way) => largest(way, (one) => one.opened);
  const running = (way: Way) => largest(way, (one) => one.peak - one.opened);
  const plain = fastest('plain');
  const kept = reports.get('copied')?.[0].kept;
  return ways.map((way) => {
    const list = reports.get(way)!;
    const own = fastest(way);
    const of = (key: keyof Run) => spread(own.map((run) => run[key]));
    const [isPlain, isOurs] = [way === 'plain', way === 'ours'];
    return {
      ...{ model: shape.name, patches, form, way, clock: of('clock'), whole: of('whole') },
      beyond: isPlain ? null : spread(own.map(({ whole }, round) => whole - plain[round].whole)),
      block: isOurs ? of('block') : null,
      connector: isOurs ? of('connector') : null,
      ...{ opened: opened(way), running: running(way) },
      beyondOpened: isPlain ? null : opened(way) - opened('plain'),
      beyondRunning: isPlain ? null : running(way) - running('plain'),
      growth: isOurs ? largest(way, (one) => one.growth as number) : null,
      isSame: isOurs && kept ? list.every((one) => String(one.kept) === String(kept)) : null,
    };
  });
}

function table(rows: readonly Row[]): string {
  const cell = (value: Spread | null) => (value === null ? '' : range(value));
  const megabytes = (value: number | null) => (value === null ? '' : value.toFixed(0));
  const names = { plain: 'by itself', copied: 'with copied nodes', ours: 'with the kernels' } as const;
  return [
    '| encoder | patches | | by the clock, ms | processor time, ms | beyond by itself | block head | connector | open, MB | beyond by itself | running, MB | beyond by itself | block head | keeps the same |',
    `|${'---|'.repeat(14)}`,
    ...rows.map((row) => {
      const { model, patches, form, way, isSame } = row;
      const title = way === 'plain' ? `${model}${form === 'fused' ? ', fused attention' : ''} | ${patches}` : ' | ';
      const times = [row.clock, row.whole, row.beyond, row.block, row.connector].map(cell);
      const memory = [row.opened, row.beyondOpened, row.running, row.beyondRunning, row.growth].map(megabytes);
      const same = isSame === null ? '' : isSame ? 'yes' : 'no';
      return `| ${[title, names[way], ...times, ...memory, same].join(' | ')} |`;
    }),
  ].join('\n');
}

async function main(): Promise<void> {
  const folder = temporaryFolder();
  const rows: Row[] = [];
  for (const one of CASES) {
    const own = await measure(one, folder);
    process.stderr.write(`${table(own)}\n`);
    rows.push(...own);
  }
  const host = machine();
  const text = [
    '# The last block on the kernels, and as copied nodes',
    '',
    `${host.processor}, ${host.cores} cores; ${host.cpu}; Node ${host.node}; ${host.date}; load average at the end ${host.loadAverage}.`,
    'Two blocks and the connector, random weights. By itself: one session of the file. With copied nodes: decoupled attention and saliency as',
    'nodes of that session. With the kernels: a session in front of the last block, hidden states into a HostBuffer, `BlockHead` for both',
    'attentions, and sessions of the rest of the block and of the connector, as the package runs float encoders. Of each process the run',
    `with the least processor time (of all threads: other processes change it little); medians of ${ROUNDS} round${ROUNDS > 1 ? 's' : ''} (10th to 90th percentile),`,
    'contenders in turn. Memory is resident memory: once all is open, and the most that running adds. Block head: processor time of both',
    "attentions and the saliency, of which the file's own attention is a part; connector: its run on the decoupled rows; and what the block",
    "head's first call adds to memory at its most, its result counted.",
    '',
    table(rows),
    '',
    'At 16384 patches scores would take 17 GB for each attention: neither the copied nodes nor an encoder whose attention is written in nodes',
    'fit into this machine. There the encoder has fused attention, and stands beside ours alone.',
    '',
  ].join('\n');
  console.log(text);

  if (QUICK) return;
  const results = join(dirname(fileURLToPath(import.meta.url)), '..', 'results');
  await mkdir(results, { recursive: true });
  await writeFile(join(results, 'block.json'), `${JSON.stringify({ machine: host, rounds: ROUNDS, rows }, null, 1)}\n`);
  await writeFile(join(results, 'block.md'), text);
}

const [mode, task] = process.argv.slice(2);
if (mode === CHILD) process.send!(await report(JSON.parse(task)));
else await main();
