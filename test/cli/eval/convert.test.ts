/** Files as the benchmarks have them, cut down to what they hold of each question. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { convertCommand } from '../../../src/cli/eval/convert-command.js';
import { readQuestions } from '../../../src/cli/eval/questions.js';
import { printed } from '../family-folders.js';
import { desap } from '../run.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-convert-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function fileOf(name: string, content: object | string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
}

/** The lines that the command writes. */
async function converted(...args: string[]): Promise<object[]> {
  const output = join(folder, 'out.jsonl');
  const said = await printed(convertCommand(), ...args, '-o', output);
  const lines = (await readFile(output, 'utf8')).trim().split('\n');
  expect(said).toBe(`${lines.length} questions: ${output}\n`);
  await readQuestions(output);
  return lines.map((line) => JSON.parse(line));
}

const PEOPLE = ['red', 'red', 'red', 'dark red', 'red', 'maroon', 'red', '', 'red', 'red'];
const INSTRUCTION = 'Answer the question using a single word or phrase.';
const POPE = [
  { question_id: 1, image: 'COCO_val2014_000000016631.jpg', text: 'Is there a person in the image?', label: 'yes' },
  {
    question_id: 2,
    image: 'COCO_val2014_000000016631.jpg',
    text: 'Is there a refrigerator in the image?',
    label: 'no',
  },
];
const GQA = {
  '201307251': {
    ...{
      semantic: [],
      entailed: [],
      equivalent: ['201307251'],
      isBalanced: true,
      groups: { global: null, local: '10q' },
    },
    ...{ question: 'Is it overcast?', imageId: 'n161313', answer: 'no', fullAnswer: 'No, it is clear.' },
    types: { detailed: 'weatherVerify', semantic: 'global', structural: 'verify' },
  },
};
const TEXTVQA = {
  dataset_type: 'val',
  data: [
    {
      question: 'what color is the sign?',
      image_id: '003a8ae2ef43b901',
      question_id: 34602,
      answers: PEOPLE,
      set_name: 'val',
    },
  ],
};
const VQA_QUESTIONS = {
  ...{ task_type: 'Open-Ended', data_type: 'mscoco', data_subtype: 'val2014' },
  questions: [{ image_id: 262148, question: 'What color is the hat?', question_id: 262148002 }],
};
const VQA_ANSWERS = {
  annotations: [
    {
      ...{
        question_type: 'what color is the',
        answer_type: 'other',
        multiple_choice_answer: 'red',
        image_id: 262148,
        question_id: 262148002,
      },
      answers: PEOPLE.map((answer, i) => ({ answer, answer_confidence: 'yes', answer_id: i + 1 })),
    },
  ],
};

describe('desap eval convert', () => {
  it('reads POPE', async () => {
    const file = await fileOf('pope.json', POPE.map((line) => `${JSON.stringify(line)}\n`).join(''));
    const plain = { image: 'val2014/COCO_val2014_000000016631.jpg', scoring: 'yes-no', instruction: INSTRUCTION };
    expect(await converted('pope', file, '--images', join(folder, 'val2014'))).toEqual([
      { ...plain, id: 1, question: 'Is there a person in the image?', answer: 'yes' },
      { ...plain, id: 2, question: 'Is there a refrigerator in the image?', answer: 'no' },
    ]);
  });

  it('reads POPE of other pictures, which is one list', async () => {
    const [plain] = POPE;
    const wanted = [{ image: plain.image, scoring: 'yes-no', id: 1, question: plain.text, answer: 'yes' }];
    expect(await converted('pope', await fileOf('pope-list.json', [plain]), '--instruction', '')).toEqual(wanted);
    await expect(converted('pope', await fileOf('pope-list.json', [plain, 7]))).rejects.toThrow(
      /pope-list\.json: \[1\]: got 7, wanted an object/,
    );
  });

  it('is a command behind eval, with options of its own', async () => {
    const [output, images] = [join(folder, 'out.jsonl'), join(folder, 'val2014')];
    const pope = await fileOf('pope.json', POPE.map((line) => `${JSON.stringify(line)}\n`).join(''));
    const { code, err } = await desap('eval', 'convert', 'pope', pope, '-o', output, '--images', images);
    expect([code, err]).toEqual([0, '']);
    const [{ image }] = await readQuestions(output);
    expect(image).toBe(join(images, POPE[0].image));
  });

  it('reads GQA', async () => {
    expect(await converted('gqa', await fileOf('gqa.json', GQA), '--instruction', '')).toEqual([
      {
        id: '201307251',
        image: 'n161313.jpg',
        question: 'Is it overcast?',
        answer: 'no',
        scoring: 'exact',
        type: 'verify',
      },
    ]);
  });

  it('reads TextVQA', async () => {
    const question = {
      image: '003a8ae2ef43b901.jpg',
      question: 'what color is the sign?',
      answer: PEOPLE,
      scoring: 'vqa',
    };
    expect(await converted('textvqa', await fileOf('textvqa.json', TEXTVQA), '--instruction', 'Briefly.')).toEqual([
      { ...question, id: 34602, instruction: 'Briefly.' },
    ]);
  });

  it('reads VQAv2', async () => {
    const files = [
      await fileOf('questions.json', VQA_QUESTIONS),
      '--annotations',
      await fileOf('annotations.json', VQA_ANSWERS),
    ];
    const question = {
      id: 262148002,
      question: 'What color is the hat?',
      answer: PEOPLE,
      scoring: 'vqa',
      type: 'other',
    };
    expect(await converted('vqav2', ...files, '--images', '..')).toEqual([
      { ...question, image: expect.stringMatching(/\/COCO_val2014_000000262148\.jpg$/), instruction: INSTRUCTION },
    ]);
  });

  it.each([
    ['pope', '{"question_id": 1}\n', [], /pope\.x:1: text: got undefined, wanted a text/],
    ['pope', '\n\n{"question_id": \n', [], /pope\.x:3: is not JSON/],
    [
      'gqa',
      { 7: { question: 'a ?', answer: 'b' } },
      [],
      /gqa\.x: 7: imageId: got undefined, wanted a text or a whole number/,
    ],
    ['gqa', 'nothing', [], /gqa\.x: is not JSON/],
    [
      'textvqa',
      { data: [TEXTVQA.data[0], { question_id: 4, image_id: 'b', question: 'c ?' }] },
      [],
      /textvqa\.x: data\[1\]: answers: got undefined/,
    ],
    ['textvqa', [], [], /textvqa\.x: data: got undefined, wanted a list/],
    ['vqav2', VQA_QUESTIONS, [], /--annotations: got no file, wanted the file of annotations/],
    ['gqa', GQA, ['--annotations', 'models/eval/demo.jsonl'], /--annotations: got .*, wanted no file for gqa/],
  ])('refuses %s: %j', async (format, content, more, message) => {
    const file = await fileOf(`${format}.x`, content);
    await expect(printed(convertCommand(), format, file, '-o', join(folder, 'no'), ...more)).rejects.toThrow(message);
  });

  it('refuses VQAv2 without the answers of a question', async () => {
    const files = [await fileOf('q.json', VQA_QUESTIONS), '--annotations', await fileOf('a.json', { annotations: [] })];
    await expect(printed(convertCommand(), 'vqav2', ...files, '-o', join(folder, 'no'))).rejects.toThrow(
      /no annotation of question 262148002/,
    );
  });
});
