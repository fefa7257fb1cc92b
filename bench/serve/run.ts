/**
 * npm run bench:serve [-- [--quick]]: the server of examples/server under load, in four forms: in workers and in the server's own thread,
 * with pruning and without; and workers against threads. Writes bench/results/serve.{json,md}; `--quick` takes a second for each cell,
 * and writes nothing.
 */
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { readLoad } from '../foreign-load.js';
import { machine, number } from '../harness.js';
import { type Asked, percentile, type Served, Server } from './client.js';

const isQuick = process.argv.includes('--quick');
const SECONDS = isQuick ? 1 : 10;
const ROUNDS = isQuick ? 1 : 3;
const IN_FLIGHT = isQuick ? [1, 16] : [1, 4, 16, 64];
const BURST = 200;
const cores = availableParallelism();

const root = fileURLToPath(new URL('../../', import.meta.url));
const images = Array.from({ length: 16 }, (_, i) =>
  readFileSync(`${root}models/eval/images/${String(i).padStart(3, '0')}.png`).toString('base64'),
);
const asked =
  (keep: Asked['keep']) =>
  (i: number): Asked => ({ image: images[i % images.length], question: 'what is the large thing ?', keep });

interface Form {
  readonly name: string;
  readonly server: readonly string[];
  readonly keep: Asked['keep'];
}
const POOL = ['pool', String(cores)];
const MAIN = ['main', String(cores)];
const FORMS: readonly Form[] = [
  { name: 'pool, 16 tokens', server: POOL, keep: 16 },
  { name: 'pool, all tokens', server: POOL, keep: 'all' },
  { name: 'no pool, 16 tokens', server: MAIN, keep: 16 },
  { name: 'no pool, all tokens', server: MAIN, keep: 'all' },
];

interface Cell {
  readonly form: string;
  readonly inFlight: number;
  readonly rate: number;
  readonly p50: number;
  readonly p95: number;
  readonly p99: number;
  readonly cpu: number;
  readonly loop: Served['load']['loop'];
  readonly failed: number;
}

const cell = (form: string, inFlight: number, { seconds, latencies, failed, load }: Served): Cell => ({
  ...{ form, inFlight, failed, rate: latencies.length / seconds, cpu: load.cpu / latencies.length, loop: load.loop },
  ...{ p50: percentile(latencies, 0.5), p95: percentile(latencies, 0.95), p99: percentile(latencies, 0.99) },
});

/** The round of each cell that has the median rate: contestants run in turn within a round. */
async function forms(): Promise<Cell[]> {
  const rounds: Cell[][] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const cells: Cell[] = [];
    for (const { name, server, keep } of FORMS) {
      process.stderr.write(`round ${round + 1}: ${name} ...\n`);
      await using one = await Server.start(server);
      await one.run(asked(keep), { inFlight: 2, seconds: 1 });
      for (const inFlight of IN_FLIGHT)
        cells.push(cell(name, inFlight, await one.run(asked(keep), { inFlight, seconds: SECONDS })));
    }
    rounds.push(cells);
  }
  return rounds[0].map((_, i) => {
    const own = rounds.map((cells) => cells[i]).sort((a, b) => a.rate - b.rate);
    return own[own.length >> 1];
  });
}

async function bursts() {
  const rows: { form: string; first: number; median: number; last: number; failed: number; loop: number }[] = [];
  for (const { name, server, keep } of FORMS) {
    process.stderr.write(`${BURST} at once: ${name} ...\n`);
    await using one = await Server.start(server);
    await one.run(asked(keep), { inFlight: 2, seconds: 1 });
    const { latencies, failed, load } = await one.run(asked(keep), { inFlight: BURST });
    const [first, median, last] = [0, 0.5, 1].map((share) => percentile(latencies, share));
    rows.push({ form: name, first, median, last, failed, loop: load.loop.max });
  }
  return rows;
}

/** How one number of cores is shared out. */
async function shares(): Promise<Cell[]> {
  const cells: Cell[] = [];
  for (let workers = 1; workers <= cores; workers *= 2) {
    process.stderr.write(`${workers} workers of ${cores} cores ...\n`);
    await using one = await Server.start([...POOL, String(workers)]);
    await one.run(asked(16), { inFlight: 2, seconds: 1 });
    for (const inFlight of [1, 16])
      cells.push(
        cell(`${workers} x ${cores / workers}`, inFlight, await one.run(asked(16), { inFlight, seconds: SECONDS })),
      );
  }
  return cells;
}

const table = (first: string, cells: readonly Cell[]) =>
  [
    `| ${first} | in flight | requests/s | p50 | p95 | p99 | CPU ms per request | loop delay p50 | p99 | max | failed |`,
    '|---|---|---|---|---|---|---|---|---|---|---|',
    ...cells.map(({ form, inFlight, failed, loop, ...one }) =>
      [
        ...['', form, inFlight],
        ...[one.rate, one.p50, one.p95, one.p99, one.cpu, loop.p50, loop.p99, loop.max].map(number),
        ...[failed, ''],
      ]
        .join(' | ')
        .trim(),
    ),
  ].join('\n');

const before = readLoad();
const result = { ...machine(), forms: await forms(), bursts: await bursts(), shares: await shares() };
const markdown = `# Serving

\`npm run bench:serve\`, ${JSON.stringify(machine())}. Milliseconds. The example model (tiny LLaVA), the server of examples/server in a process of
its own, the load in another on the same ${cores} cores; load before: ${JSON.stringify(before)}.

${table('form', result.forms)}

${BURST} requests at once:

| form | first answer | median | last | longest loop delay | failed |
|---|---|---|---|---|---|
${result.bursts.map((row) => `| ${row.form} | ${[row.first, row.median, row.last, row.loop].map(number).join(' | ')} | ${row.failed} |`).join('\n')}

How ${cores} cores are shared out, workers x threads, 16 tokens:

${table('workers x threads', result.shares)}
`;
console.log(markdown);
const lost = [...result.forms, ...result.bursts, ...result.shares].filter(({ failed }) => failed > 0);
if (lost.length > 0) throw new Error(`requests failed: ${JSON.stringify(lost)}`);
if (!isQuick) {
  await writeFile(`${root}bench/results/serve.json`, `${JSON.stringify(result, null, 1)}\n`);
  await writeFile(`${root}bench/results/serve.md`, markdown);
}
