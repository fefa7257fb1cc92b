/**
 * npx tsx test/exports/check.ts [--write] [--verbose] folder...: every case of folders that make.py and optimum_make.py wrote (and of
 * test/fixtures/exports) against the package. Prints a table by exporter, version and form; `--write` puts it into
 * bench/results/exports.{md,json}. Exits with 1 when a case is not as expected.
 */
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { table } from '../../src/cli/table.js';
import { ROOT } from '../support.js';
import { type CaseResult, checkCase, type ExportCase } from './check-case.js';

interface Checked {
  readonly given: ExportCase;
  readonly result: CaseResult;
}

const { values: options, positionals: folders } = parseArgs({
  allowPositionals: true,
  options: { write: { type: 'boolean' }, verbose: { type: 'boolean' }, only: { type: 'string' } },
});
if (folders.length === 0) throw new Error('wanted one folder with a manifest.json, or several');

const checked: Checked[] = [];
for (const folder of folders) {
  const cases: ExportCase[] = JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8'));
  for (const given of cases) {
    if (options.only !== undefined && !given.name.includes(options.only)) continue;
    const result = await checkCase(folder, given);
    checked.push({ given, result });
    const failed = result.failures.length > 0;
    if (failed || options.verbose) console.log(`${failed ? 'FAIL' : 'ok'} ${given.name} (${given.kind}, ${given.how})`);
    for (const failure of result.failures) console.log(`     ${failure.split('\n')[0]}`);
    if (options.verbose && result.message !== undefined) console.log(`     refused: ${result.message}`);
  }
}

const HEADER = ['exporter', 'version', 'form', 'cases', 'read', 'refused', 'wrong', 'largest errors'];
const wrong = checked.filter(({ result }) => result.failures.length > 0).length;
const rows = grouped(checked).map(rowOf);
const summary = `${checked.length} cases: ${checked.length - wrong} as expected, ${wrong} not.`;
console.log(table(HEADER, rows, [3, 4, 5, 6]));
console.log(summary);
if (options.write) await write();
if (wrong > 0) process.exitCode = 1;

/** Cases of one exporter, version, form and kind, in the order of the manifests; opsets of one form are one row. */
function grouped(cases: readonly Checked[]): Checked[][] {
  const groups = new Map<string, Checked[]>();
  for (const one of cases) {
    const { exporter, versions, kind } = one.given;
    const key = [exporter, versions, formOf(one.given), kind].join('|');
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  return [...groups.values()];
}

/** A form without its opset and, behind a tool, without the exporter that wrote its input; files of unknown exporters: how they were made. */
function formOf({ form, how }: ExportCase): string {
  return (form ?? how).replace(/,?( torch\.onnx \w+)? opset \d+/, '');
}

function rowOf(group: readonly Checked[]): string[] {
  const [{ given }] = group;
  const count = (accept: (result: CaseResult) => boolean) =>
    String(group.filter(({ result }) => accept(result)).length);
  const right = (result: CaseResult) => result.failures.length === 0;
  const opsets = [...new Set(group.flatMap(({ given }) => given.form?.match(/opset (\d+)/)?.[1] ?? []))];
  return [
    given.exporter ?? '',
    given.versions ?? '',
    `${formOf(given)}${opsets.length > 0 ? `, opset ${opsets.join(' ')}` : ''} (${given.kind.replace('refuse-', '')})`,
    String(group.length),
    count((result) => right(result) && result.verdict === 'read'),
    count((result) => right(result) && result.verdict === 'refused'),
    count((result) => !right(result)),
    errorsOf(group),
  ];
}

function errorsOf(group: readonly Checked[]): string {
  const worst = new Map<string, number>();
  for (const { result } of group)
    for (const [what, error] of Object.entries(result.errors)) worst.set(what, Math.max(worst.get(what) ?? 0, error));
  worst.delete('epsilon');
  return [...worst].map(([what, error]) => `${what} ${error === 0 ? '0' : error.toExponential(0)}`).join(', ');
}

async function write(): Promise<void> {
  const line = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  const markdown = `# Files of real exporters

Tiny models with random weights, exported by \`test/exports/make.py\` and \`test/exports/optimum_make.py\`, and read by this package
(\`npm run exports:make\`, \`npm run exports:check\`). Expected: the weights within 1e-6 of PyTorch's, hidden states, text rows, features and
merged tokens within 1e-4 of PyTorch's and Hugging Face's in float64, relative to the largest magnitude; the sets kept at three counts equal; both confirmations pass.
Files in float16, q8 and q4 are allowed their own rounding. "Refused": a \`DesapError\` where one is expected, for example for a tower that has no
class token. "Wrong": anything else. One row has all opsets of one form, from both exporters where a tool stands
behind them.

${summary}

${[HEADER, HEADER.map(() => '---'), ...rows].map(line).join('\n')}
`;
  await writeFile(join(ROOT, 'bench/results/exports.md'), markdown);
  const json = checked.map(({ given, result }) => ({
    name: given.name,
    kind: given.kind,
    exporter: given.exporter ?? null,
    versions: given.versions ?? null,
    form: given.form ?? given.how,
    verdict: result.failures.length === 0 ? result.verdict : 'wrong',
    errors: result.errors,
    failures: result.failures,
  }));
  await writeFile(
    join(ROOT, 'bench/results/exports.json'),
    `[\n${json.map((one) => JSON.stringify(one)).join(',\n')}\n]\n`,
  );
}
