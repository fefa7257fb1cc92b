import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Chat } from '../../src/runtimes/chat.js';

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
  root = await mkdtemp(join(tmpdir(), 'desap-templates-'));
});
afterAll(() => rm(root, { recursive: true }));

/** A folder with a tokenizer, and with other files on top. */
async function folderOf(tokenizer: string, files: Record<string, string | object>): Promise<string> {
  const folder = await mkdtemp(join(root, 'folder-'));
  await cp(join(FIXTURES, 'tokenizers', tokenizer), folder, { recursive: true });
  for (const [name, content] of Object.entries(files)) {
    await mkdir(join(folder, name, '..'), { recursive: true });
    await writeFile(join(folder, name), typeof content === 'string' ? content : JSON.stringify(content));
  }
  return folder;
}

const templateOf = (name: string) => readFile(join(FIXTURES, 'templates', `${name}.jinja`), 'utf8');

describe('prompts have the ids of Hugging Face’s processor', () => {
  it.each(templates)('%s', async (template) => {
    const own = cases.filter((one) => one.template === template && one.kind === 'one turn');
    const [{ tokenizer, image }] = own;
    const folder = await folderOf(tokenizer, {
      'chat_template.jinja': await templateOf(template),
      'config.json': { image_token_id: image },
    });
    const chat = await Chat.open(folder);
    for (const { words, ids } of own) expect(chat.prompt(words, 4).ids, words).toEqual(ids);
    expect(own.length).toBeGreaterThan(10);
  });
});
