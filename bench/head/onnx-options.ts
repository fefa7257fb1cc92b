/**
 * npx tsx bench/head/onnx-options.ts: the tuned graph of the head in ONNX Runtime under the session options that might help it, each
 * against the defaults, which the duel of `npm run bench:head` uses. Writes bench/results/onnx-options.{json,md}.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { atRest } from '../../src/vision/session.js';
import { head } from '../data.js';
import { LLAVA, machine, range, ratios, type Spread, spread } from '../harness.js';
import { question } from './contestants.js';
import { headGraph } from './graphs.js';
import { runRounds, timed } from './rounds.js';

const THREADS = [1, 2];
const LIMITS = { rounds: 11, limit: 33, foreign: 0.04 };
/** Long enough for threads that spin after a run to give up before the next contestant's. */
const PAUSE_MS = 20;

const OPTIONS: Record<string, (options: InferenceSession.SessionOptions) => InferenceSession.SessionOptions> = {
  'defaults, threads at rest': atRest,
  'threads spin': (options) => options,
  'no memory arena': (options) => atRest({ ...options, enableCpuMemArena: false }),
  'no memory pattern': (options) => atRest({ ...options, enableMemPattern: false }),
  'denormals are zero': (options) => ({
    ...options,
    extra: { session: { intra_op: { allow_spinning: '0' }, set_denormal_as_zero: '1' } },
  }),
  'dynamic blocks': (options) => ({
    ...options,
    extra: { session: { intra_op: { allow_spinning: '0' }, dynamic_block_base: '4' } },
  }),
  'optimised: extended': (options) => atRest({ ...options, graphOptimizationLevel: 'extended' }),
  'optimised: basic': (options) => atRest({ ...options, graphOptimizationLevel: 'basic' }),
  'optimised: not at all': (options) => atRest({ ...options, graphOptimizationLevel: 'disabled' }),
  'branches in parallel': (options) => atRest({ ...options, executionMode: 'parallel', interOpNumThreads: 2 }),
};

/** Places for the outputs, which a session otherwise allocates. */
const places = () => ({
  tokens: new Tensor('float32', new Float32Array(LLAVA.keep * LLAVA.width), [LLAVA.keep, LLAVA.width]),
  indices: new Tensor('int64', new BigInt64Array(LLAVA.keep), [LLAVA.keep]),
  assignment: new Tensor('int64', new BigInt64Array(LLAVA.patches), [LLAVA.patches]),
  task: new Tensor('float32', new Float32Array(LLAVA.patches), [LLAVA.patches]),
});

interface Row {
  readonly threads: number;
  readonly options: string;
  readonly ms: Spread;
  /** How many times longer than under the defaults, from the same rounds. */
  readonly ratio: Spread;
}

const { hidden, text } = question();
const graph = headGraph('tuned', head(), LLAVA);
const rows: Row[] = [];
let dropped = 0;
for (const threads of THREADS) {
  const names = [...Object.keys(OPTIONS), 'outputs in place'];
  const runs = await Promise.all(
    names.map(async (name) => {
      const options = (OPTIONS[name] ?? atRest)({ intraOpNumThreads: threads });
      const session = await InferenceSession.create(graph, options);
      const fetches = name in OPTIONS ? undefined : places();
      return () => (fetches ? session.run({ hidden, text }, fetches) : session.run({ hidden, text }));
    }),
  );
  for (const run of runs) await run();
  const rounds = await runRounds(
    runs.map((run) => async () => {
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      return timed(run);
    }),
    LIMITS,
  );
  dropped += rounds.dropped;
  const [defaults] = rounds.samples;
  names.forEach((options, i) => {
    const taken = rounds.samples[i];
    rows.push({ threads, options, ms: spread(taken), ratio: ratios(taken, defaults) });
  });
}

const about = machine();
const report = [
  '# Session options of ONNX Runtime',
  '',
  `${about.processor}, ${about.cores} cores; Node ${about.node}; ${about.date}; load average at the end ${about.loadAverage}.`,
  `The tuned graph of the head at LLaVA-1.5's shape; medians of at most ${LIMITS.rounds} rounds (10th to 90th percentile), ${dropped} dropped for foreign load;`,
  'ratios from the same rounds.',
  '',
  '| threads | options | ms | times as long as the defaults |',
  '|---|---|---|---|',
  ...rows.map(({ threads, options, ms, ratio }) => `| ${[threads, options, range(ms), range(ratio)].join(' | ')} |`),
  '',
].join('\n');
console.log(report);
const folder = join(dirname(fileURLToPath(import.meta.url)), '../results');
await mkdir(folder, { recursive: true });
await writeFile(join(folder, 'onnx-options.json'), `${JSON.stringify({ machine: about, rows, dropped }, null, 1)}\n`);
await writeFile(join(folder, 'onnx-options.md'), report);
