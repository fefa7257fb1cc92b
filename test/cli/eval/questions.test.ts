import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readQuestions } from '../../../src/cli/eval/questions.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-questions-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function fileOf(...lines: (object | string)[]): Promise<string> {
  const path = join(folder, 'questions.jsonl');
  await writeFile(path, lines.map((line) => (typeof line === 'string' ? line : JSON.stringify(line))).join('\n'));
  return path;
}

const PLAIN = { image: 'a.png', question: 'what ?', answer: 'red' };
const PEOPLE = ['red', 'red', 'dark red', 'blue'];

describe('the file of questions', () => {
  it('is read line by line, without blank lines and unknown fields', async () => {
    const path = await fileOf(PLAIN, '', { ...PLAIN, image: 'sub/b.png', type: 'color', target: [1, 2] }, '');
    const plain = { question: 'what ?', told: 'what ?', scoring: 'exact', answers: ['red'] };
    expect(await readQuestions(path)).toEqual([
      { ...plain, line: 1, image: join(folder, 'a.png') },
      { ...plain, line: 3, image: join(folder, 'sub/b.png'), type: 'color' },
    ]);
    const [{ image }] = await readQuestions(path, { images: '/pictures' });
    expect(image).toBe('/pictures/a.png');
  });

  it.each([
    ['one answer', PLAIN, {}, 'exact'],
    ['several answers', { ...PLAIN, answer: PEOPLE }, {}, 'any'],
    ['a line that says it', { ...PLAIN, answer: PEOPLE, scoring: 'vqa' }, { scoring: 'any' }, 'vqa'],
    ['a default', { ...PLAIN, answer: PEOPLE }, { scoring: 'vqa' }, 'vqa'],
    ['choices', { ...PLAIN, choices: ['blue', 'red'] }, {}, 'choice'],
  ] as const)('has a way of scoring for %s', async (_, line, options, scoring) => {
    const [question] = await readQuestions(await fileOf(line), options);
    expect(question.scoring).toBe(scoring);
  });

  it('tells the language model choices and how to answer, and the pruner the question alone', async () => {
    const choices = { ...PLAIN, choices: ['blue', 'red'] };
    const [letter, phrase] = await readQuestions(await fileOf(choices, { ...PLAIN, instruction: 'One word.' }));
    expect(letter).toMatchObject({
      question: 'what ?',
      told: "what ?\nA. blue\nB. red\nAnswer with the option's letter from the given choices directly.",
    });
    expect(phrase).toMatchObject({ question: 'what ?', told: 'what ?\nOne word.' });
  });

  it.each(['yes', 'No.', ' YES '])('takes %j for yes or no', async (answer) => {
    const line = { ...PLAIN, answer, scoring: 'yes-no' };
    expect(await readQuestions(await fileOf(line))).toMatchObject([{ answers: [answer] }]);
  });

  it.each([
    ['text', 'not json', /:2: is not JSON/],
    ['a list', '[1]', /:2: got \[1\], wanted a JSON object/],
    ['no image', { question: 'what ?', answer: 'red' }, /:2: image: got undefined, wanted a text/],
    ['an empty question', { ...PLAIN, question: ' ' }, /:2: question: got ' ', wanted a text/],
    ['no answer', { image: 'a.png', question: 'what ?' }, /:2: answer: got undefined, wanted a list of texts/],
    ['answers that are none', { ...PLAIN, answer: [] }, /:2: answer: got \[\]/],
    ['a number for an answer', { ...PLAIN, answer: 3 }, /:2: answer: got 3/],
    ['an unknown scoring', { ...PLAIN, scoring: 'bleu' }, /:2: scoring: got 'bleu', wanted 'exact' \| 'any'/],
    ['several answers for exact', { ...PLAIN, answer: PEOPLE, scoring: 'exact' }, /:2: answer: got .*'any' or 'vqa'/],
    ['few people', { ...PLAIN, answer: ['a', 'b', 'c'], scoring: 'vqa' }, /:2: answer: got .*at least 4 people/],
    ['red for yes or no', { ...PLAIN, scoring: 'yes-no' }, /:2: answer: got 'red', wanted 'yes' or 'no'/],
    ['a choice twice', { ...PLAIN, choices: ['blue', 'red', 'Red.'] }, /:2: choices: got .*, wanted each choice once/],
    ['no choices', { ...PLAIN, scoring: 'choice' }, /:2: choices: got undefined/],
    [
      'an answer that is no choice',
      { ...PLAIN, choices: ['blue'] },
      /:2: answer: got 'red', wanted one of the choices/,
    ],
    ['too many choices', { ...PLAIN, choices: [...'abcdefghijklmnopqrstuvwxyz', 'red'] }, /:2: choices: .*at most 26/],
  ])('refuses %s, with the line', async (_, line, message) => {
    const reading = readQuestions(await fileOf(PLAIN, line));
    await expect(reading).rejects.toMatchObject({ code: 'ERR_FILE', message: expect.stringMatching(message) });
  });

  it('refuses a file without questions, and one that is missing', async () => {
    const empty = { code: 'ERR_FILE', message: expect.stringMatching(/got no question, wanted at least one/) };
    await expect(readQuestions(await fileOf('', ' '))).rejects.toMatchObject(empty);
    await expect(readQuestions(join(folder, 'none'))).rejects.toMatchObject({ code: 'ERR_FILE' });
  });
});
