import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Questions } from '../../src/runtimes/transformers/question.js';

const FIXTURES = 'test/fixtures/prompts';

interface Case {
  readonly template: string;
  readonly tokenizer: string;
  readonly image: number;
  readonly kind: string;
  readonly words: string;
  readonly ids: readonly number[];
}
const cases: Case[] = JSON.parse(await readFile(join(FIXTURES, 'cases.json'), 'utf8'));
const templates = [...new Set(cases.map(({ template }) => template))];

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'desap-question-'));
});
afterAll(() => rm(root, { recursive: true }));

async function questionsOf(tokenizer: string, template?: string): Promise<Questions> {
  const folder = await mkdtemp(join(root, 'folder-'));
  await cp(join(FIXTURES, 'tokenizers', tokenizer), folder, { recursive: true });
  if (template) await cp(join(FIXTURES, 'templates', `${template}.jinja`), join(folder, 'chat_template.jinja'));
  return Questions.open(folder);
}

describe('the words of the last user turn', () => {
  it.each(templates)('%s', async (template) => {
    const own = cases.filter((one) => one.template === template);
    const questions = await questionsOf(own[0].tokenizer, template);
    for (const { kind, words, ids, image } of own) {
      let got: string;
      try { got = questions.read(ids, image); } catch (error) { got = (error as Error).message; }
      if (got !== words) console.log(template, '|', kind, '|', JSON.stringify(words), '|', JSON.stringify(got));
    }
  });
});
