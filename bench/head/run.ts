/**
 * npm run bench:head [-- --no-scaling | --quick]: the whole pruning head beside what else could compute it, and how its cost grows
 * with the work. Prints tables and writes bench/results/head.{json,md} and head-scaling.svg. `--quick` tries out all but the
 * longest calls and writes nothing.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { machine } from '../harness.js';
import { question } from './contestants.js';
import { duel, duelReport } from './duel.js';
import { plot } from './plot.js';
import { scaling } from './scaling.js';
import { scalingReport } from './scaling-report.js';

const QUICK = process.argv.includes('--quick');

const compared = await duel(QUICK);
const grown = process.argv.includes('--no-scaling') ? null : await scaling(question(), QUICK);
const about = machine();
const text = [
  '# The head, measured',
  '',
  `${about.processor}, ${about.cores} cores; ${about.cpu}; Node ${about.node}; ${about.date}; load average at the end ${about.loadAverage}.`,
  ...duelReport(compared),
  ...(grown ? scalingReport(grown) : []),
].join('\n');
console.log(text);

if (!QUICK) {
  const folder = join(dirname(fileURLToPath(import.meta.url)), '../results');
  await mkdir(folder, { recursive: true });
  const results = { machine: about, duel: compared, scaling: grown };
  await writeFile(join(folder, 'head.json'), `${JSON.stringify(results, null, 1)}\n`);
  await writeFile(join(folder, 'head.md'), text);
  if (grown) await writeFile(join(folder, 'head-scaling.svg'), plot(grown.points));
}
