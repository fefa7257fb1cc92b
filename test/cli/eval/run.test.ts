/** How questions are asked, by an examinee that is made up. */
import { appendFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Plan, parseAmounts, parsePositions } from '../../../src/cli/eval/cells.js';
import type { Examinee } from '../../../src/cli/eval/examinee.js';
import { Journal } from '../../../src/cli/eval/journal.js';
import { type Method, parseMethods } from '../../../src/cli/eval/methods.js';
import type { EvalQuestion } from '../../../src/cli/eval/questions.js';
import { rowsOf } from '../../../src/cli/eval/results.js';
import { askAll } from '../../../src/cli/eval/run.js';
import { DesapError } from '../../../src/index.js';

const questionOf = (line: number, image = `${line}.png`): EvalQuestion => {
  return {
    line,
    image,
    question: 'what ?',
    told: 'what ?',
    scoring: 'exact',
    answers: ['red'],
    type: line % 2 ? 'odd' : 'even',
  };
};
const questions = Array.from({ length: 6 }, (_, i) => questionOf(i + 1));
const plan: Plan = {
  methods: parseMethods('desap,desap:taskShare=0'),
  amounts: parseAmounts('4,2'),
  positions: parsePositions('compact,original'),
};

/** Says red with all tokens, with 4 of them, and at original positions with `taskShare: 0`. */
function examinee(problems: Record<string, Error> = {}) {
  const log: string[] = [];
  let open = 0;
  const own: Examinee = {
    device: 'none',
    async see(image) {
      if (problems[image]) throw problems[image];
      open++;
      log.push(image);
      const reply = (isRight: boolean, tokens: number) => ({
        ...{ text: isRight ? 'red' : 'blue', tokens },
        parts: { vision: 5, prefill: tokens, decode: 1 },
      });
      return {
        whole: async () => reply(true, 16),
        pruned: async (_, { keep = 0, taskShare }, forms) =>
          forms.map((form) => reply(keep === 4 || (taskShare === 0 && form === 'original'), keep)),
        dispose: () => open--,
      };
    },
    dispose: async () => {},
  };
  return { examinee: own, log, isClosed: () => open === 0 };
}

const ask = (given: readonly EvalQuestion[], own: Examinee, journal = Journal.none(), how = plan) =>
  askAll(given, how, { examinee: own, journal, step: () => {} });

describe('a run', () => {
  it('sees each picture once, and gives rows with paired differences', async () => {
    const { examinee: own, log, isClosed } = examinee();
    const { answered, skipped } = await ask(questions, own);
    expect(log).toEqual(questions.map(({ image }) => image));
    expect(isClosed()).toBe(true);
    expect(skipped).toEqual([]);
    const rows = rowsOf(plan, answered);
    const none = { mean: 0, error: 0 };
    expect(rows.map(({ method, keep, positions }) => `${method} ${keep} ${positions}`)).toEqual([
      'all all ',
      ...['desap 4 compact', 'desap:taskShare=0 4 compact', 'desap 2 compact', 'desap:taskShare=0 2 compact'],
      ...['desap 4 original', 'desap:taskShare=0 4 original', 'desap 2 original', 'desap:taskShare=0 2 original'],
    ]);
    expect(rows[0]).toMatchObject({ tokens: 16, accuracy: { mean: 1 }, toFirst: null, toAll: null, latency: 21 });
    expect(rows[1]).toMatchObject({ tokens: 4, accuracy: { mean: 1 }, toFirst: null, toAll: none });
    expect(rows[4]).toMatchObject({ accuracy: { mean: 0 }, toFirst: none, toAll: { mean: -1, error: 0 } });
    expect(rows[8]).toMatchObject({ accuracy: { mean: 1 }, toFirst: { mean: 1, error: 0 }, toAll: none });
    expect(rows[8]).toMatchObject({ types: { odd: 1, even: 1 }, ms: { vision: 5, prefill: 2, decode: 1 }, latency: 7 });
  });

  it('averages the draws of a method', async () => {
    const draws: Method = { label: 'drawn', draws: (line) => [{ taskShare: 0 }, { taskShare: line % 2 }, {}, {}] };
    const how = { methods: [draws], amounts: parseAmounts('2'), positions: parsePositions('original') };
    const { answered } = await ask(questions, examinee().examinee, Journal.none(), how);
    expect(answered.map(({ results }) => results['drawn 2 original'].score)).toEqual([0.25, 0.5, 0.25, 0.5, 0.25, 0.5]);
    expect(answered[0].results['drawn 2 original'].answers).toEqual(['red', 'blue', 'blue', 'blue']);
  });

  it('skips a question whose picture is missing, and goes on', async () => {
    const missing = new DesapError('ERR_FILE', '2.png: missing');
    const { examinee: own, isClosed } = examinee({ '2.png': missing });
    const { answered, skipped } = await ask(questions, own);
    expect(answered.map(({ line }) => line)).toEqual([1, 3, 4, 5, 6]);
    expect(skipped).toEqual([{ line: 2, skipped: '2.png: missing' }]);
    expect(isClosed()).toBe(true);
  });

  it('stops where the device is lost, and for what is no error of this package', async () => {
    for (const error of [new DesapError('ERR_DEVICE_LOST', 'gone'), new TypeError('a fault')])
      await expect(ask(questions, examinee({ '3.png': error }).examinee)).rejects.toBe(error);
  });

  it('stops where one reason skips question after question', async () => {
    const many = Array.from({ length: 30 }, (_, i) => questionOf(i + 1));
    const same = Object.fromEntries(many.map(({ image }) => [image, new DesapError('ERR_VALUE', 'keep: got 200')]));
    const stopped = { code: 'ERR_VALUE', message: '10 questions in a row, to line 10: keep: got 200' };
    await expect(ask(many, examinee(same).examinee)).rejects.toMatchObject(stopped);
    const other = Object.fromEntries(many.map(({ image }) => [image, new DesapError('ERR_FILE', `${image}: missing`)]));
    expect((await ask(many, examinee(other).examinee)).skipped).toHaveLength(30);
  });
});

describe('a run that was stopped', () => {
  let folder: string;
  let path: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'desap-journal-'));
    path = join(folder, 'answers.jsonl');
  });
  afterEach(() => rm(folder, { recursive: true }));

  it('goes on behind its last whole line, and asks again what was skipped', async () => {
    const settings = { keep: ['4', '2'], prompt: undefined };
    const before = examinee({ '2.png': new DesapError('ERR_FILE', '2.png: missing') });
    await ask(questions.slice(0, 3), before.examinee, await Journal.open(path, settings));
    const lines = await readFile(path, 'utf8');
    expect(lines.split('\n')).toHaveLength(5);
    await appendFile(path, '{"line":4,"resu');

    const after = examinee();
    const { answered, skipped } = await ask(questions, after.examinee, await Journal.open(path, settings));
    expect(after.log).toEqual(['2.png', '4.png', '5.png', '6.png']);
    expect(answered.map(({ line }) => line)).toEqual([1, 2, 3, 4, 5, 6]);
    expect(skipped).toEqual([]);
    expect((await readFile(path, 'utf8')).startsWith(lines)).toBe(true);

    const again = examinee();
    expect(await ask(questions, again.examinee, await Journal.open(path, settings))).toEqual({ answered, skipped });
    expect(again.log).toEqual([]);
  });

  it('refuses answers that were made otherwise, and other files', async () => {
    await Journal.open(path, { keep: ['4'], prompt: 'a' });
    const other = (settings: object) => Journal.open(path, settings as Record<string, unknown>);
    await expect(other({ keep: ['4', '2'], prompt: 'a' })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: `${path}: got answers with the keep ["4"], wanted ["4","2"], or another --out`,
    });
    await expect(other({ keep: ['4'] })).rejects.toMatchObject({
      message: expect.stringMatching(/the prompt "a", wanted undefined/),
    });
    await writeFile(path, '{"line":1}\n');
    await expect(other({})).rejects.toMatchObject({ code: 'ERR_FILE', message: expect.stringMatching(/no settings/) });
    await writeFile(path, '{"settings":{}}\nnonsense\n');
    await expect(other({})).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(/:2: is not JSON/),
    });
    await writeFile(path, '{"sett');
    expect((await Journal.open(path, {})).answered.size).toBe(0);
    expect(await readFile(path, 'utf8')).toBe('{"settings":{}}\n');
    await writeFile(path, 'a diary');
    await expect(other({})).rejects.toMatchObject({ code: 'ERR_FILE' });
    expect(await readFile(path, 'utf8')).toBe('a diary');
    await expect(Journal.open(join(path, 'below'), {})).rejects.toMatchObject({ code: 'ERR_FILE' });
  });
});
