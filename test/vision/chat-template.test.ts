import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Chat } from '../../src/cli/llava/chat.js';
import { cases, PROMPTS, templates } from '../prompt-cases.js';

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'desap-templates-'));
});
afterAll(() => rm(root, { recursive: true }));

/** A folder with a tokenizer, and with other files on top. */
async function folderOf(tokenizer: string, files: Record<string, string | object>): Promise<string> {
  const folder = await mkdtemp(join(root, 'folder-'));
  await cp(join(PROMPTS, 'tokenizers', tokenizer), folder, { recursive: true });
  for (const [name, content] of Object.entries(files)) {
    await mkdir(join(folder, name, '..'), { recursive: true });
    await writeFile(join(folder, name), typeof content === 'string' ? content : JSON.stringify(content));
  }
  return folder;
}

const templateOf = (name: string) => readFile(join(PROMPTS, 'templates', `${name}.jinja`), 'utf8');

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

it('line ends of a template file are one kind, as in Hugging Face’s processor', async () => {
  const [{ words, ids, image }] = cases.filter(({ template }) => template === 'qwen2-vl');
  const folder = await folderOf('chatml', {
    'chat_template.jinja': (await templateOf('qwen2-vl')).replaceAll('\n', '\r\n'),
    'config.json': { image_token_id: image },
  });
  expect((await Chat.open(folder)).prompt(words, 4).ids).toEqual(ids);
});

describe('where a folder keeps its template', () => {
  const says = (word: string) =>
    `{{ '${word}' }}{% for c in messages[0]['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}`;
  const stored = (word: string) => ({ chat_template: says(word) });
  const named = (word: string) => ({
    chat_template: [
      { name: 'rag', template: 'R' },
      { name: 'default', template: says(word) },
    ],
  });
  const TOKENS = { bos_token: '<s>', eos_token: '</s>' };
  const all: Record<string, string | object> = {
    'processor_config.json': { ...stored('processor'), image_token: '<image>' },
    'chat_template.json': stored('json'),
    'chat_template.jinja': says('jinja'),
    'additional_chat_templates/default.jinja': says('additional'),
    'tokenizer_config.json': { ...TOKENS, ...stored('tokenizer') },
  };
  const CONFIG = { 'config.json': { image_token_index: 419 } };

  // As transformers 5.24 answers for the same folders: its processor, or its tokenizer where the processor has no template.
  it.each([
    [Object.keys(all), 'processor'],
    [Object.keys(all).slice(1), 'json'],
    [Object.keys(all).slice(2), 'jinja'],
    [Object.keys(all).slice(3), 'additional'],
    [Object.keys(all).slice(4), 'tokenizer'],
  ])('%j: %s', async (names, word) => {
    const files = Object.fromEntries(names.map((name) => [name, all[name]]));
    expect(await promptOf(await folderOf('llama', { ...CONFIG, ...files }))).toBe(`${word}<image>what?`);
  });

  const inTokenizer = (config: object) => ({ 'tokenizer_config.json': { ...TOKENS, ...config } });
  const forms: [string, Record<string, string | object>][] = [
    ['a list of named ones', inTokenizer(named('own'))],
    ['an object of named ones', inTokenizer({ chat_template: { rag: 'R', default: says('own') } })],
    ['null, and a file', { ...inTokenizer({ chat_template: null }), 'chat_template.jinja': says('own') }],
    ['null in a processor', { ...inTokenizer(stored('own')), 'processor_config.json': { chat_template: null } }],
    ['an empty file', { ...inTokenizer(stored('own')), 'chat_template.jinja': '' }],
  ];
  it.each(forms)('as %s', async (_, files) => {
    expect(await promptOf(await folderOf('llama', { ...CONFIG, ...files }))).toBe('own<image>what?');
  });

  it('a processor that transformers 5 saved', async () => {
    const saved = join(root, 'saved');
    await cp(join(PROMPTS, 'saved'), saved, { recursive: true });
    await writeFile(join(saved, 'config.json'), JSON.stringify(CONFIG['config.json']));
    const chat = await Chat.open(saved);
    const own = cases.filter(({ template, kind }) => template === 'llava-1.5' && kind === 'one turn');
    for (const { words, ids } of own) expect(chat.prompt(words, 4).ids, words).toEqual(ids);
  });

  it('nowhere: the option prompt is asked for, and taken', async () => {
    const folder = await folderOf('llama', CONFIG);
    await expect(Chat.open(folder)).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: /got no chat template.*prompt/,
    });
    const unnamed = { 'tokenizer_config.json': { chat_template: { rag: says('rag') } } };
    await expect(Chat.open(await folderOf('llama', { ...CONFIG, ...unnamed }))).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: /named default/,
    });
    expect(await promptOf(folder, 'USER: {image}\n{question} ASSISTANT:')).toBe('USER: <image> \nwhat? ASSISTANT:');
    expect(await promptOf(await folderOf('llama', { ...CONFIG, ...all }), '{image}{question}')).toBe('<image>what?');
    await expect(Chat.open(folder, '{question}')).rejects.toMatchObject({ code: 'ERR_VALUE', message: /^prompt/ });
  });

  it('in a file that is no template: its name and the reason', async () => {
    const folder = await folderOf('llama', { ...CONFIG, 'chat_template.jinja': '{% for m in messages %}{{ m' });
    await expect(Chat.open(folder)).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: /chat_template\.jinja: .*prompt/,
    });
  });
});

describe('special tokens', () => {
  const BOTH =
    "{{ bos_token + eos_token }}{% for c in messages[0]['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}";

  it.each([
    ['texts', { bos_token: '<s>', eos_token: '</s>' }, {}],
    [
      'objects',
      { bos_token: { content: '<s>', lstrip: false }, eos_token: { __type: 'AddedToken', content: '</s>' } },
      {},
    ],
    ['a map beside the config', {}, { bos_token: { content: '<s>' }, eos_token: '</s>' }],
    ['named extra ones', { extra_special_tokens: { bos_token: '<s>', eos_token: '</s>' } }, {}],
  ])('as %s reach the template, and the first one is not doubled', async (_, config, map) => {
    const folder = await folderOf('llama', {
      'config.json': { image_token_id: 419 },
      'tokenizer_config.json': config,
      'special_tokens_map.json': map,
      'chat_template.jinja': BOTH,
    });
    const chat = await Chat.open(folder);
    expect(chat.prompt('a', 1).ids.slice(0, 3)).toEqual([1, 2, 419]);
  });

  it('the image token and the end token by their names, where the config has no ids', async () => {
    const folder = await folderOf('llama', {
      'config.json': {},
      'tokenizer_config.json': { bos_token: '<s>', eos_token: '</s>', image_token: '<image>' },
      'chat_template.jinja': BOTH,
    });
    const chat = await Chat.open(folder);
    expect([chat.prompt('a', 1).visualId, [...chat.endTokens]]).toEqual([419, [2]]);
    expect(chat.text([])).toBe('');
  });

  it('end tokens by generation_config.json, else the config, else that of the language model', async () => {
    const template = { 'chat_template.jinja': BOTH, 'tokenizer_config.json': { bos_token: '<s>', eos_token: '</s>' } };
    const nested = {
      'config.json': { image_token_id: 419, eos_token_id: null, text_config: { eos_token_id: [7, 8] } },
    };
    const ends = async (files: object) => [
      ...(await Chat.open(await folderOf('llama', { ...template, ...files }))).endTokens,
    ];
    expect(await ends(nested)).toEqual([7, 8]);
    expect(await ends({ ...nested, 'generation_config.json': { eos_token_id: 5 } })).toEqual([5]);
    expect(await ends({ ...nested, 'generation_config.json': { eos_token_id: null } })).toEqual([7, 8]);
  });
});

/** The prompt of "what?" as text, without the tokens that begin it. */
async function promptOf(folder: string, form?: string): Promise<string> {
  const chat = await Chat.open(folder, form);
  const { ids } = chat.prompt('what?', 1);
  const read = async (name: string) => JSON.parse(await readFile(join(folder, name), 'utf8'));
  const tokenizer = new Tokenizer(await read('tokenizer.json'), {});
  return tokenizer.decode(ids.slice(1), { clean_up_tokenization_spaces: false }).replace('<image> what', '<image>what');
}
