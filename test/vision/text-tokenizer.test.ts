/** Tokenizer files that their package opens, and fails on later. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { chatTemplates } from '../../src/vision/chat-template.js';
import { readTextFiles } from '../../src/vision/text-files.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-tokenizer-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function changed(
  from: string,
  change: (file: { model: Record<string, unknown>; added_tokens: unknown }) => void,
) {
  const file = JSON.parse(await readFile(join(from, 'tokenizer.json'), 'utf8'));
  change(file);
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(file));
  return folder;
}

it('characters without a token, where none stands for them, are refused', async () => {
  const at = await changed('test/fixtures/siglip', ({ model }) => delete model.unk_token);
  const { tokenizer, words } = await readTextFiles(at, 'the test');
  expect(words(tokenizer.encode('what colour', { add_special_tokens: false }).ids)).toHaveLength(2);
  expect(() => tokenizer.encode('熊')).toThrow(
    expect.objectContaining({ code: 'ERR_VALUE', message: expect.stringMatching(/^text: .* without a token/) }),
  );
});

it('and left out by BPE', async () => {
  const at = await changed('test/fixtures/exports/tok77', ({ model }) => delete model.unk_token);
  const { tokenizer } = await readTextFiles(at, 'the test');
  const options = { add_special_tokens: false };
  expect(tokenizer.encode('熊', options).ids.every(Number.isSafeInteger)).toBe(true);
});

it.each([
  ['no model', (file: { model: unknown }) => void (file.model = null)],
  ['added tokens that are none', (file: { added_tokens: unknown }) => void (file.added_tokens = [{ id: 'x' }])],
])('%s: refused', async (_, change) => {
  const at = await changed('test/fixtures/exports/tok77', change as never);
  await expect(readTextFiles(at, 'the test')).rejects.toMatchObject({ code: 'ERR_FILE' });
});

it('a chat template that is no text is none', async () => {
  await writeFile(join(folder, 'chat_template.json'), JSON.stringify({ chat_template: 5 }));
  expect(await chatTemplates(folder, {})).toEqual([]);
});
