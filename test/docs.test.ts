/** The papers of the house: what they link to and name is there, and the table of kernels is true and whole. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { MODEL_TYPES } from '../src/vision/families.js';
import { ROOT } from './support.js';

const read = (file: string) => readFileSync(join(ROOT, file), 'utf8');
const DOCS = readdirSync(join(ROOT, 'docs')).filter((name) => name.endsWith('.md'));
const PAPERS = [
  'README.md',
  'CONTRIBUTING.md',
  'CHANGELOG.md',
  'bench/NOTES.md',
  'models/MODEL_CARD.md',
  'test/exports/README.md',
  'test/vllm/report.md',
  'tools/export/README.md',
  ...DOCS.map((name) => `docs/${name}`),
];

/** The anchors of a paper's headings, as GitHub makes them. */
function anchors(paper: string): string[] {
  return [...read(paper).matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );
}

describe.each(PAPERS)('%s', (paper) => {
  const text = read(paper);

  test('links to what is there', () => {
    const broken = [...text.matchAll(/\]\(([^)\s]+)\)/g)]
      .map(([, target]) => target)
      .filter((target) => !target.includes('://'))
      .filter((target) => {
        const [path, anchor] = target.split('#');
        const file = path === '' ? paper : join(dirname(paper), path);
        return !existsSync(join(ROOT, file)) || (anchor !== undefined && !anchors(file).includes(anchor));
      });
    expect(broken).toEqual([]);
  });

  test('names files and scripts that are there', () => {
    const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
    const files = [...text.matchAll(/(?<=`)(?:src|native|test|docs|bench|examples|models\/\w+|tools)\/[\w./-]+(?=`)/g)]
      .map(([file]) => file)
      .filter((file) => file !== 'docs/api'); // made by `npm run docs`
    const runs = [...text.matchAll(/npm run (?:--silent )?([a-z:-]+)/g)].map(([, script]) => script);
    expect(files.filter((file) => !existsSync(join(ROOT, file)))).toEqual([]);
    expect(runs.filter((script) => !(script in scripts))).toEqual([]);
  });
});

test.each(MODEL_TYPES)('the table of models has %s', (type) => {
  const [section] = read('docs/models.md').split('## Which models')[1].split('\nQuestion matched by');
  expect(section).toContain(`\`${type}\``);
});

describe('the table of kernels', () => {
  const [section] = read('CONTRIBUTING.md').split('## Where a kernel is')[1].split('\n## ');
  const [head, , ...rows] = section
    .split('\n')
    .filter((line) => line.startsWith('|'))
    .map((line) => line.split('|').slice(1, -1))
    .map((cells) => cells.map((cell) => cell.trim().replaceAll('`', '')));
  const [, ...folders] = head;

  test('has every kernel of native/kernels.h, in its order', () => {
    const serve = ['linear_pack', 'convert_half', 'convert_to_half'];
    const declared = [...read('native/kernels.h').matchAll(/^Status (\w+)\(Context&/gm)].map(([, name]) => name);
    expect(rows.map(([kernel]) => kernel)).toEqual(declared.filter((name) => !serve.includes(name)));
  });

  test.each(rows)('%s is where it says', (kernel, ...cells) => {
    const inScript = kernel.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
    const files = folders.map((folder, i) => folder + cells[i]);
    const lacking = files.filter((file) => !existsSync(join(ROOT, file)));
    expect(lacking).toEqual([]);
    expect(files.filter((file) => !new RegExp(`\\b(${kernel}|${inScript})`).test(read(file)))).toEqual([]);
  });
});
