/** Every block of code in the papers runs as it stands, on the small models. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { type Block, blocksOf } from './snippets/blocks.js';
import { runsOf } from './snippets/commands.js';
import { check, type Program, writeProgram } from './snippets/programs.js';
import { makeWorkplace, sized, WORKPLACE } from './snippets/workplace.js';
import { EMULATED, ROOT } from './support.js';

const docs = readdirSync(join(ROOT, 'docs')).filter((name) => name.endsWith('.md'));
const PAPERS = ['README.md', 'test/exports/README.md', 'tools/export/README.md', ...docs.map((name) => `docs/${name}`)];
const blocks = PAPERS.flatMap((paper) => blocksOf(paper, readFileSync(join(ROOT, paper), 'utf8')));

/** How a block of code begins that does not say so. */
const CODE = /^\s*(import|export|const|await|npm|npx|node|desap|\$) /m;
const of = (...languages: string[]) =>
  blocks
    .filter(({ language, notRun }) => notRun === null && languages.includes(language))
    .map((block): [string, Block] => [`${block.paper}:${block.line}`, block]);

function node(args: readonly string[], text: string): string {
  // A GPU that is asked for is the emulated one.
  const env = /cuda/.test(text) ? { ...process.env, DESAP_CUDA_ADDON: EMULATED } : process.env;
  return execFileSync(process.execPath, args, { cwd: WORKPLACE, env, encoding: 'utf8', stdio: 'pipe' });
}

beforeAll(makeWorkplace);

it('every block of code is run, or says why not', () => {
  const run = ['ts', 'js', 'sh'];
  const left = blocks.filter(
    ({ language, notRun, text }) => notRun === null && !run.includes(language) && CODE.test(text),
  );
  expect(left.map(({ paper, line, language }) => `${paper}:${line} ${language}`)).toEqual([]);
});

describe('programs', () => {
  const written = new Map<Block, Program>();
  let said: Map<Program, string>;
  beforeAll(() => {
    for (const [, block] of of('ts', 'js')) written.set(block, writeProgram(block));
    said = check([...written.values()]);
  });

  it.each(of('ts', 'js'))('%s', (_, block) => {
    const program = written.get(block) as Program;
    expect(said.get(program)).toBe('');
    node([program.file], block.text);
  });
});

describe('command lines', () => {
  it.each(of('sh'))('%s', (_, { text }) => {
    for (const args of runsOf(sized(text), WORKPLACE)) node(args, args.join(' '));
  });
});

describe('a paper is refused', () => {
  const mark = '<!-- not run: no model is small enough -->';
  it.each([
    ['with a mark without a reason', '<!-- not run: -->\n```ts\n```', /paper:1: wanted/],
    ['with a mark above no block', `${mark}\ntext`, /paper:2: no block/],
    ['with a mark at its end', mark, /no block/],
    ['with a fence without an end', '```ts\n', /paper:1: this fence/],
  ])('%s', (_, markdown, message) => {
    expect(() => blocksOf('paper', markdown)).toThrow(message);
  });

  it.each([
    ['a script', 'npm run no-such-script'],
    ['a file', 'npx tsx bench/no-such-file.ts'],
    ['a file by a pattern', 'desap verify test/golden/no-such-*.safetensors'],
  ])('with a command line that names %s that is not there', (_, line) => {
    expect(() => runsOf(line, ROOT)).toThrow(/no-such/);
  });

  it('and not for a block with a mark, fenced or indented', () => {
    const read = blocksOf(
      'paper',
      `text\n\n    desap flops # cost\n\n${mark}\n    node x.mjs\n\n${mark}\n\`\`\`js\nx;\n\`\`\``,
    );
    expect(read.map(({ line, language, notRun }) => [line, language, notRun !== null])).toEqual([
      [3, 'sh', false],
      [6, 'sh', true],
      [10, 'js', true],
    ]);
    expect(runsOf(read[0].text, ROOT).map((args) => args.slice(1))).toEqual([['flops']]);
  });
});
