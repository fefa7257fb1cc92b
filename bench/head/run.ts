/**
 * npm run bench:head [-- [--python PROGRAM] [--no-scaling] [--quick]]: the whole pruning head beside what else could compute it, and
 * how its cost grows with the work. Prints tables and writes bench/results/head.{json,md} and head-scaling.svg.
 * `--python` names a Python that has PyTorch, which competes then; `--quick` tries out all but the longest calls and writes nothing.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { machine } from '../harness.js';
import { question } from './contestants.js';
import { duel } from './duel.js';
import { duelReport } from './duel-report.js';
import { plot } from './plot.js';
import { scaling } from './scaling.js';
import { scalingReport } from './scaling-report.js';

const { quick, python, ...others } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    python: { type: 'string' },
    'no-scaling': { type: 'boolean', default: false },
  },
}).values;

const compared = await duel({ quick, python });
const grown = others['no-scaling'] ? null : await scaling(question(), quick);
const about = machine();
const text = [
  '# The head, measured',
  '',
  `${about.processor}, ${about.cores} cores; ${about.cpu}; Node ${about.node}; ${about.date}; load average at the end ${about.loadAverage}.`,
  ...duelReport(compared),
  ...(grown ? scalingReport(grown) : []),
].join('\n');
console.log(text);

if (!quick) {
  const folder = join(dirname(fileURLToPath(import.meta.url)), '../results');
  await mkdir(folder, { recursive: true });
  const results = { machine: about, duel: compared, scaling: grown };
  await writeFile(join(folder, 'head.json'), `${JSON.stringify(results, null, 1)}\n`);
  await writeFile(join(folder, 'head.md'), text);
  if (grown) await writeFile(join(folder, 'head-scaling.svg'), plot(grown.points));
}
