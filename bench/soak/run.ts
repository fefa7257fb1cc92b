/**
 * `npm run soak -- [--minutes 60] [--out bench/results]`: mixed calls, one round after the other. After each round what the process holds
 * is measured; after the warm-up it has to stay. Writes soak.{json,md,svg}, and ends with an error where something grew. Linux with glibc.
 */
import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { machine } from '../harness.js';
import { plot } from './plot.js';
import { BOUNDS, type Sample, type Steady, sample, trend } from './samples.js';
import { type Counts, Work } from './work.js';

const { values } = parseArgs({
  options: { minutes: { type: 'string', default: '60' }, out: { type: 'string', default: 'bench/results' } },
});
const minutes = Number(values.minutes);
if (!(minutes > 0)) throw new Error(`--minutes: got ${values.minutes}, wanted a number above 0`);
if (globalThis.gc === undefined) throw new Error('wanted node --expose-gc: garbage is no leak');
if (process.env.MALLOC_ARENA_MAX !== '1')
  throw new Error('wanted MALLOC_ARENA_MAX=1: what malloc keeps for each thread is no leak, and hides one');

/** The share of the time in which pools, caches and compiled code may still grow. */
const WARM_UP = 0.3;
/**
 * MB of a round that onnxruntime-node keeps: of the three worker threads of a pool that opened sessions. By itself it keeps about 6 KB of one
 * that opens and releases a single session (ort-workers.mjs); a third of that is allowed.
 */
const KEPT_BY_ORT = (3 * 2) / 1024;
/** Rounds after the warm-up that tell a trend. */
const FEWEST = 20;
const { inUse } = createRequire(import.meta.url)('./malloc/build/Release/malloc.node') as { inUse(): number };
const work = await Work.open();
await work.warm();
const delay = monitorEventLoopDelay({ resolution: 5 });
delay.enable();
const start = performance.now();
const samples: Sample[] = [];
const counts: Counts = {};
let rounds = 0;
for (; performance.now() - start < minutes * 60_000; rounds++) {
  await work.round(rounds, counts);
  samples.push(await sample(start, delay, inUse));
}
await work.close();

const warm = minutes * WARM_UP;
const after = samples.filter((one) => one.minutes > warm);
if (after.length < FEWEST)
  throw new Error(`got ${after.length} rounds after the warm-up, wanted at least ${FEWEST}: take more --minutes`);
const names = Object.keys(BOUNDS) as Steady[];
const allowed = { native: after.length * KEPT_BY_ORT } as Partial<Record<Steady, number>>;
const trends = Object.fromEntries(names.map((name) => [name, trend(after, name, allowed[name])]));
const grew = Object.entries(trends).flatMap(([name, { isFlat }]) => (isFlat ? [] : [name]));
const late = Math.max(...after.map(({ lateDelay }) => lateDelay));
const about = {
  ...machine(),
  minutes,
  warmUp: warm,
  rounds,
  counts,
  trends,
  verdict: grew.length === 0 ? 'flat' : grew,
};

const MEMORY = ['rss', 'native', 'heap', 'external'];
const number = (value: number) => value.toPrecision(4);
const text = [
  '# Soak',
  '',
  `${minutes} minutes (${about.date}, ${about.processor}, ${about.cores} cores, Node ${about.node}, load ${about.loadAverage} at the end), ` +
    `${rounds} rounds, of which the first ${number(warm)} minutes are warm-up. ` +
    `${grew.length === 0 ? 'Nothing grew.' : `Grew: ${grew.join(', ')}.`}`,
  '',
  '| | median | growth after the warm-up | bound | growth in an hour | |',
  '|---|---|---|---|---|---|',
  ...Object.entries(trends).map(
    ([name, { median, growth, bound, perHour, isFlat }]) =>
      `| ${name}${MEMORY.includes(name) ? ', MB' : ''} | ${number(median)} | ${number(growth)} | ${number(bound)} | ${number(perHour)} | ${isFlat ? 'flat' : 'grew'} |`,
  ),
  '',
  'Growth is that of a line through the medians of ten equal parts, of `rss` through the least of each. `native` is what malloc has given out; ' +
    'its bound allows for what onnxruntime-node keeps of worker threads (bench/soak/ort-workers.mjs). malloc has one arena ' +
    '(`MALLOC_ARENA_MAX=1`): with one for each thread it keeps more of what was freed ([server](../../docs/server.md)).',
  '',
  `The event loop was late by ${number(late)} ms at most in one of a hundred turns of a round: ONNX Runtime keeps it while a session runs.`,
  '',
  '| calls | count |',
  '|---|---|',
  ...Object.entries(counts).map(([name, count]) => `| ${name} | ${count} |`),
  '',
  '![Memory, counts and the event loop over time](soak.svg)',
  '',
].join('\n');
const write = (ending: string, content: string) => writeFileSync(join(values.out, `soak.${ending}`), content);
write('json', `${JSON.stringify({ about, samples }, null, 1)}\n`);
write('md', text);
write('svg', plot(samples, warm));
console.log(text);
process.exitCode = grew.length === 0 ? 0 : 1;
