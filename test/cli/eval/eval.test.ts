/** `desap eval` with the example model: its answers are those of an independent implementation (models/expected.json). */
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { evalCommand } from '../../../src/cli/eval/command.js';
import type { Answered } from '../../../src/cli/eval/journal.js';
import type { Report } from '../../../src/cli/eval/report.js';
import { close, items, keep } from '../../expected-items.js';
import { json, printed } from '../family-folders.js';
import { desap, ONE_LINE } from '../run.js';

const QUESTIONS = 'models/eval/questions.jsonl';
const ASKED = items.slice(0, 12);

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-eval-'));
});
afterAll(() => rm(folder, { recursive: true }));

const answersOf = async (out: string): Promise<Answered[]> =>
  (await readFile(join(out, 'answers.jsonl'), 'utf8'))
    .trim()
    .split('\n')
    .slice(1)
    .map((line) => JSON.parse(line));

describe('desap eval', () => {
  it('answers as expected, stops, and goes on', async () => {
    const out = join(folder, 'out');
    const ask = (limit: number, ...more: string[]): Promise<Report> =>
      json(evalCommand(), '--questions', QUESTIONS, '--keep', `${keep}`, '--out', out, '--limit', `${limit}`, ...more);
    await ask(5);
    const before = await answersOf(out);
    const report = await ask(ASKED.length);
    const after = await answersOf(out);
    expect(after.slice(0, 5)).toEqual(before);
    expect(close.has(ASKED.length - 1)).toBe(false);
    expect(
      after.map(({ line, results }) => [line, results.all.answers, results[`desap ${keep} default`].answers]),
    ).toEqual(ASKED.map(({ item, full, pruned }) => [item + 1, [full], [pruned]]));

    const keys = (await readFile(QUESTIONS, 'utf8'))
      .split('\n')
      .slice(0, ASKED.length)
      .map((line) => JSON.parse(line).answer);
    const share = (right: boolean[]) => right.filter(Boolean).length / right.length;
    const [all, pruned] = [ASKED.map(({ full }, i) => full === keys[i]), ASKED.map((one, i) => one.pruned === keys[i])];
    expect(report.answered).toBe(ASKED.length);
    expect(report.rows).toHaveLength(2);
    expect(report.rows[0]).toMatchObject({ method: 'all', tokens: 144, accuracy: { mean: share(all) } });
    expect(report.rows[1]).toMatchObject({
      method: 'desap',
      keep: `${keep}`,
      tokens: keep,
      accuracy: { mean: share(pruned) },
    });
    expect(report.rows[1].toAll?.mean).toBeCloseTo(share(pruned) - share(all), 12);
    for (const part of ['vision', 'analyze', 'text', 'select', 'merge', 'projector', 'prefill'])
      expect(report.rows[1].ms[part]).toBeGreaterThan(0);

    expect((await readdir(out)).sort()).toEqual(['answers.jsonl', 'report.csv', 'report.html', 'report.json']);
    expect(JSON.parse(await readFile(join(out, 'report.json'), 'utf8'))).toEqual(report);
    await expect(ask(5, '--positions', 'original')).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/the positions \[null\], wanted \["original"\]/),
    });
  });

  it('has original positions, shares, and methods that look into other blocks of the tower', async () => {
    const methods = 'desap,desap:alignment=mean,vscan,divprune,random';
    const how = ['--methods', methods, '--keep', '50%,8', '--positions', 'compact,original'];
    const { rows }: Report = await json(evalCommand(), '--questions', QUESTIONS, '--limit', '2', ...how);
    const kept = [72, 8].flatMap((tokens) => new Array<number>(5).fill(tokens));
    expect(rows.map(({ tokens }) => tokens)).toEqual([144, ...kept, ...kept]);
  });

  it('names at its end what it skipped', async () => {
    const picture = resolve('models/eval/images/000.png');
    const question = { image: picture, question: 'what is the large thing ?', answer: 'cloud' };
    const file = join(folder, 'some.jsonl');
    const lines = [question, { ...question, image: 'none.png' }, { ...question, question: 'is <image> there ?' }];
    await writeFile(file, lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
    const { code, out, err } = await desap('eval', 'models/tiny-llava', '--questions', file, '--keep', '16');
    expect(code).toBe(0);
    expect(out).toMatch(/^all .* 100\.00 /m);
    expect(out).toContain('\n1 question on: ');
    expect(err).toMatch(/^skipped line 2: .*none\.png.*\nskipped line 3: question: got .*<image>.*\n$/);
  });

  it('fails where no question could be asked', async () => {
    const file = join(folder, 'none.jsonl');
    await writeFile(file, '{"image":"none.png","question":"what ?","answer":"red"}\n');
    const failed = {
      code: 'ERR_VALUE',
      message: expect.stringMatching(/got no question that could be asked \(line 1: .*none\.png/),
    };
    await expect(printed(evalCommand(), '--questions', file, '--keep', '4')).rejects.toMatchObject(failed);
    const all = ['--questions', QUESTIONS, '--keep', '200', '--limit', '20'];
    const stopped = {
      code: 'ERR_VALUE',
      message: expect.stringMatching(/10 questions in a row, to line 10: keep: got 200/),
    };
    await expect(printed(evalCommand(), ...all)).rejects.toMatchObject(stopped);
  });

  it.each([
    [[], '--questions <file>'],
    [['--questions', QUESTIONS], '--keep <list>'],
  ])('wants its options: %j', async (args, option) => {
    const { code, out, err } = await desap('eval', ...args);
    expect([code, out, err]).toEqual([
      2,
      '',
      `desap: required option '${option}' not specified (see: desap eval --help)\n`,
    ]);
  });

  it.each([
    ['a line that is no question', [], '{"image":"a.png"}\n', /:1: answer: got undefined/],
    [
      'an unknown option of the method',
      ['--methods', 'desap:speed=9'],
      '',
      /--methods desap:speed=9: options: .*'speed'/,
    ],
  ])('refuses %s', async (_, more, lines, message) => {
    const file = join(folder, 'bad.jsonl');
    await writeFile(file, lines || '{"image":"a.png","question":"what ?","answer":"red"}\n');
    const { code, out, err } = await desap('eval', ...more, '--questions', file, '--keep', '4');
    expect(err).toMatch(message);
    expect(err).toMatch(ONE_LINE);
    expect([code, out]).toEqual([1, '']);
  });
});
