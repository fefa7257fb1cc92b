/**
 * npm run bench:batches [-- --quick] [--rounds=5]: how many tiles one run of a vision encoder should take. Towers of SmolVLM, LFM2-VL and LLaVA-NeXT at
 * their true width with a few blocks (blocks are equal), tiles one by one, in batches, and all in one run; in turn, round by round. A full
 * run writes bench/results/batches.{json,md}; `--quick` tries everything out at a small width and writes nothing. Linux only, for memory.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as ort from 'onnxruntime-node';
import { atRest } from '../../src/vision/session.js';
import { machine, range, ratios, type Spread, spread } from '../harness.js';
import { temporaryFolder } from '../onnx-models.js';
import { beginAnew, inProcess, resident } from '../own-process.js';
import { feedsOf } from './inputs.js';
import { MODELS, type Model, small } from './models.js';
import { writeEncoder } from './write.js';

const QUICK = process.argv.includes('--quick');
const CHILD = '--child';
const ROUNDS = Number(/--rounds=(\d+)/.exec(process.argv.join(' '))?.[1] ?? (QUICK ? 2 : 5));
const BLOCKS = 3;
const SIZES = [1, 2, 4, 8];

/** One size of a batch. */
interface Row {
  readonly model: string;
  readonly tiles: number;
  /** Tiles of one run; the last run of an image may have fewer. */
  readonly batch: number;
  /** Milliseconds for a tile. */
  readonly clock: Spread;
  /** Milliseconds of processor time for a tile. */
  readonly processor: Spread;
  /** The time for a tile of this size by that of one tile a run, round by round. */
  readonly ratio: Spread;
  /** MB that the first run of this size adds to memory, sizes ascending. */
  readonly memory: number;
}

interface Task {
  readonly model: Model;
  readonly path: string;
  readonly rounds: number;
}

function processorTime(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** Milliseconds for a tile by each size of a batch: what a process reports. */
async function report({ model, path, rounds }: Task): Promise<Row[]> {
  const { tiles, encoder } = model;
  const session = await ort.InferenceSession.create(path, atRest());
  const sizes = [...new Set([...SIZES.filter((size) => size < tiles), tiles])];
  const feeds = new Map([...sizes, ...sizes.map((size) => tiles % size)].map((size) => [size, feedsOf(encoder, size)]));
  const run = (size: number) => session.run(feeds.get(size) as ReturnType<typeof feedsOf>);
  const runAll = async (batch: number) => {
    for (let at = 0; at < tiles; at += batch) await run(Math.min(batch, tiles - at));
  };
  const memory: number[] = [];
  for (const size of sizes) {
    const before = resident('VmRSS');
    beginAnew();
    await run(size);
    memory.push(resident('VmHWM') - before);
  }
  const clock = sizes.map((): number[] => []);
  const processor = sizes.map((): number[] => []);
  for (let round = 0; round < rounds; round++)
    // Every other round the other way round: what a run leaves in caches is not always the same neighbour's.
    for (const i of round % 2 === 0 ? sizes.keys() : [...sizes.keys()].reverse()) {
      const [start, spent] = [performance.now(), processorTime()];
      await runAll(sizes[i]);
      clock[i].push((performance.now() - start) / tiles);
      processor[i].push((processorTime() - spent) / tiles);
    }
  return sizes.map((batch, i) => ({
    ...{ model: model.name, tiles, batch },
    clock: spread(clock[i]),
    processor: spread(processor[i]),
    ratio: ratios(clock[i], clock[0]),
    memory: memory[i],
  }));
}

async function main(): Promise<void> {
  const folder = temporaryFolder();
  const rows: Row[] = [];
  for (const name of ['SmolVLM', 'LFM2-VL-450M', 'LLaVA-NeXT-7B']) {
    const whole = MODELS.find((model) => model.name === name) as Model;
    const model = QUICK ? small(whole) : whole;
    const cut = { ...model, encoder: { ...model.encoder, blocks: BLOCKS } };
    process.stderr.write(`${name} ...\n`);
    const { visionEncoder: path } = await writeEncoder(cut, join(folder, name));
    const task = JSON.stringify({ model: cut, path, rounds: ROUNDS } satisfies Task);
    rows.push(...(await inProcess<Row[]>(import.meta.url, [CHILD, task], name)));
  }
  const host = machine();
  const text = [
    '# Tiles of one run of a vision encoder',
    '',
    `${host.processor}, ${host.cores} cores; Node ${host.node}; ${host.date}; load average at the end ${host.loadAverage}.`,
    `Encoders of true width with ${BLOCKS} blocks and random weights in onnxruntime-node, float32. Medians of ${ROUNDS} rounds (10th to 90th percentile), sizes in turn;`,
    'ratios from the same rounds. Memory: what the first run of a size adds to the process, sizes ascending.',
    '',
    '| encoder | tiles of an image | tiles of a run | ms a tile | processor time, ms a tile | of the time of one tile a run | memory, MB |',
    '|---|---|---|---|---|---|---|',
    ...rows.map(({ model, tiles, batch, clock, processor, ratio, memory }) => {
      const cells = [model, tiles, batch, range(clock), range(processor), range(ratio), memory.toFixed(0)];
      return `| ${cells.join(' | ')} |`;
    }),
    '',
  ].join('\n');
  console.log(text);

  if (QUICK) return;
  const results = join(dirname(fileURLToPath(import.meta.url)), '..', 'results');
  await mkdir(results, { recursive: true });
  await writeFile(
    join(results, 'batches.json'),
    `${JSON.stringify({ machine: host, rounds: ROUNDS, blocks: BLOCKS, rows }, null, 1)}\n`,
  );
  await writeFile(join(results, 'batches.md'), text);
}

const [mode, task] = process.argv.slice(2);
if (mode === CHILD) process.send!(await report(JSON.parse(task)));
else await main();
