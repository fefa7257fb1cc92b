/**
 * `npm run bench:arenas -- [--rounds 40] [--out bench/results]`: what malloc keeps of memory that worker threads gave back, by the number
 * of its arenas. Two workers at a time begin, work, and are terminated. Writes arenas.{json,md}. Linux with glibc, for malloc/malloc.cc.
 */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { machine } from '../harness.js';

const ENCODER = 'models/tiny-llava/onnx/vision_encoder.onnx';

/** What workers do, as their source. Only the last has anything of ours. */
const WORKS: Readonly<Record<string, string>> = {
  'Node alone': `require('node:worker_threads').parentPort.postMessage('done');`,
  'ONNX Runtime alone: a session opened, run, released': `
    const { InferenceSession, Tensor } = require('onnxruntime-node');
    InferenceSession.create('${ENCODER}', { intraOpNumThreads: 2 }).then(async (session) => {
      const dims = session.inputMetadata[0].shape.map((extent) => (typeof extent === 'number' ? extent : 1));
      const pixels = new Tensor('float32', new Float32Array(dims.reduce((a, b) => a * b)), dims);
      for (let i = 0; i < 3; i++) await session.run({ [session.inputNames[0]]: pixels });
      await session.release();
      require('node:worker_threads').parentPort.postMessage('done');
    });`,
  'desap: kernels, terminated with calls in flight': `
    import('${new URL('../../test/fixtures/worker.mjs', import.meta.url)}')`,
};
const LIMITS = ['no limit', '2', '1'];

interface Memory {
  readonly rss: number;
  readonly native: number;
}

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '40' },
    out: { type: 'string', default: 'bench/results' },
    work: { type: 'string' },
  },
});
const rounds = Number(values.rounds);

if (values.work === undefined) compare();
else console.log(JSON.stringify(await follow(WORKS[values.work])));

/** Memory after the first round and after each quarter of the rounds. */
async function follow(source: string): Promise<Memory[]> {
  const { inUse } = createRequire(import.meta.url)('./malloc/build/Release/malloc.node') as { inUse(): number };
  const samples: Memory[] = [];
  for (let round = 0; round <= rounds; round++) {
    await Promise.all([0, 1].map(() => work(source)));
    if (round % Math.ceil(rounds / 4) > 0) continue;
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 50));
    samples.push({ rss: process.memoryUsage.rss() / 2 ** 20, native: inUse() / 2 ** 20 });
  }
  return samples;
}

async function work(source: string): Promise<void> {
  const worker = new Worker(source, { eval: true, workerData: 'many' });
  const ended = new Promise((resolve) => worker.once('exit', resolve));
  await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
  await worker.terminate();
  await ended;
}

/** A process for each work and each limit. */
function compare(): void {
  const results = Object.keys(WORKS).flatMap((name) =>
    LIMITS.map((limit) => {
      const { MALLOC_ARENA_MAX: _, ...others } = process.env;
      const env = { ...others, ORT_DISABLE_TELEMETRY: '1', ...(limit !== LIMITS[0] && { MALLOC_ARENA_MAX: limit }) };
      const [, file] = process.argv;
      const given = ['--expose-gc', '--import', 'tsx', file, '--work', name, '--rounds', String(rounds)];
      const samples = JSON.parse(execFileSync(process.execPath, given, { env, encoding: 'utf8' })) as Memory[];
      return { name, limit, samples };
    }),
  );
  const about = { ...machine(), rounds };
  const megabytes = (value: number) => value.toFixed(1);
  const text = [
    '# What malloc keeps of worker threads',
    '',
    `${2 * rounds} worker threads, two at a time (${about.date}, ${about.processor}, ${about.cores} cores, Node ${about.node}). MB after the ` +
      'first two, after each quarter, and what malloc has given out in the end.',
    '',
    '| workers | MALLOC_ARENA_MAX | RSS | given out at first | in the end |',
    '|---|---|---|---|---|',
    ...results.map(({ name, limit, samples }) => {
      const all = samples.map(({ rss }) => megabytes(rss)).join(', ');
      return `| ${name} | ${limit} | ${all} | ${megabytes(samples[0].native)} | ${megabytes(samples[samples.length - 1].native)} |`;
    }),
    '',
  ].join('\n');
  writeFileSync(join(values.out, 'arenas.json'), `${JSON.stringify({ about, results }, null, 1)}\n`);
  writeFileSync(join(values.out, 'arenas.md'), text);
  console.log(text);
}
