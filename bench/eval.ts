/**
 * Every method on the questions of both example models, by `desap eval`. Run: npm run bench:eval. A run that was stopped goes on; the
 * answers are in out/. The reports, and the table as it is printed, go to bench/results.
 */
import { execFile } from 'node:child_process';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { METHOD_NAMES } from '../src/methods/index.js';
import { MODELS, RESULTS } from './questions.js';

const OUT = fileURLToPath(new URL('../out', import.meta.url));
const COMMAND = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));
const BEST = 'desap:preset=best';
const [DESAP, ...RIVALS] = METHOD_NAMES;
const METHODS = [DESAP, BEST, `${BEST},distances=hidden`, 'desap:alignment=mean,taskShare=1', ...RIVALS].join();
const RUNS = [
  { model: 'tiny-llava', questions: 'eval', keep: '48,32,16,8' },
  { model: 'tiny-llava-next', questions: 'eval-next', keep: '16,8' },
];

for (const { model, questions, keep } of RUNS) {
  const report = join(OUT, `eval-${model}`);
  const path = (name: string) => `models/${name}`;
  const asked = ['--questions', path(`${questions}/questions.jsonl`), '--methods', METHODS, '--keep', keep];
  const words = ['eval', path(model), ...asked, '--positions', 'compact,original', '--out'];
  const table = (await promisify(execFile)(process.execPath, [COMMAND, ...words, report], { cwd: join(MODELS, '..') }))
    .stdout;
  const { date } = JSON.parse(await readFile(join(report, 'report.json'), 'utf8')) as { date: string };
  for (const format of ['json', 'csv', 'html'])
    await copyFile(join(report, `report.${format}`), join(RESULTS, `eval-${model}.${format}`));
  const shown = `desap ${words.join(' ')} out/eval-${model}`;
  const text = [
    `# Methods on ${model}`,
    '',
    `${date.slice(0, 10)}, \`${shown}\`:`,
    '',
    '```',
    table.trimEnd(),
    '```',
    '',
  ];
  await writeFile(join(RESULTS, `eval-${model}.md`), text.join('\n'));
  process.stdout.write(table);
}
