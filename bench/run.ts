/**
 * npm run bench [-- kernel ...]: every kernel and the whole head, the JavaScript reference against the native kernels on the
 * same inputs in the same run. Prints a table; a full run writes it to bench/results/kernels.{json,md}.
 *
 * npm run bench:cuda [-- kernel ...]: the CPU against every GPU instead, from and to host memory; kernels-cuda.{json,md}.
 * Device times are those of build-cuda/desap-cuda-bench.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { devices } from '../src/index.js';
import align from './align.bench.js';
import attention from './attention.bench.js';
import dpp from './dpp.bench.js';
import farthestPoints from './farthest-points.bench.js';
import { type Benchmark, machine, measure, ON_GPUS, type Result, table } from './harness.js';
import head from './head.bench.js';
import layerNorm from './layer-norm.bench.js';
import linear from './linear.bench.js';
import merge from './merge.bench.js';
import pool from './pool.bench.js';
import readOut from './read-out.bench.js';
import rmsNorm from './rms-norm.bench.js';
import saliency from './saliency.bench.js';
import select from './select.bench.js';
import selfAttention from './self-attention.bench.js';
import siglipReadOut from './siglip-read-out.bench.js';
import topK from './top-k.bench.js';
import unitRows from './unit-rows.bench.js';

const ALL: Record<string, () => Benchmark | Promise<Benchmark>> = {
  layerNorm,
  rmsNorm,
  linear,
  attention,
  saliency,
  selfAttention,
  pool,
  readOut,
  siglipReadOut,
  unitRows,
  align,
  topK,
  select,
  merge,
  farthestPoints,
  dpp,
  head,
};

const ROUNDS = 7;

const wanted = process.argv.slice(2).filter((argument) => argument !== '--cuda');
const unknown = wanted.filter((name) => !(name in ALL));
if (unknown.length > 0) {
  console.error(`unknown: ${unknown.join(', ')}; there are ${Object.keys(ALL).join(', ')}`);
  process.exit(2);
}

const noGpu = devices().find(({ device }) => device === 'cuda');
if (ON_GPUS && noGpu && !noGpu.available) {
  console.error(`cuda: ${noGpu.reason}`);
  process.exit(1);
}

const results: Result[] = [];
for (const name of wanted.length > 0 ? wanted : Object.keys(ALL)) {
  process.stderr.write(`${name} ...\n`);
  results.push(...measure(await ALL[name](), ROUNDS));
}
const about = machine();
const text = [
  `${about.processor}, ${about.cores} cores; ${[about.cpu, ...about.gpus].join('; ')}; Node ${about.node}; ${about.date}; load average at the end ${about.loadAverage}.`,
  `Medians of ${ROUNDS} rounds (10th to 90th percentile); contenders in turn within each round; ratios from the same rounds.`,
  '',
  table(results),
  '',
].join('\n');
console.log(text);

if (wanted.length === 0) {
  const folder = join(dirname(fileURLToPath(import.meta.url)), 'results');
  await mkdir(folder, { recursive: true });
  const name = ON_GPUS ? 'kernels-cuda' : 'kernels';
  await writeFile(join(folder, `${name}.json`), `${JSON.stringify({ machine: about, results }, null, 1)}\n`);
  await writeFile(join(folder, `${name}.md`), text);
}
