/** The stand-in answers and fails as vLLM 0.32.0 did, and the examples get through. */
import { execFile } from 'node:child_process';
import { access, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { checkUsage, toImageEmbeds } from '../../src/serving/index.js';
import { ROOT } from '../support.js';
import { ANSWERS, requestText, WIDTH } from './fixtures.js';
import { type StandIn, type StandInModel, standIn } from './stand-in.js';
import { tinyLlava } from './tiny-llava.js';

let server: StandIn;
afterEach(() => server.close());

/** The model of the fixtures: how its template and tokenizer count, taken from the real answers; it says "yes". */
const OF_FIXTURES: StandInModel = {
  hiddenSize: WIDTH,
  textTokens: (_, images) => 14 + images,
  answer: () => ['yes'],
};

const post = async (path: string, body: string) => {
  const response = await fetch(`${server.baseURL.replace('/v1', '')}${path}`, { method: 'POST', body });
  return { status: response.status, json: JSON.parse(await response.text()) };
};

describe('a request that vLLM answered is answered alike', () => {
  const answers = ANSWERS.filter(({ name }) => !name.includes('chat-part'));

  it.each(answers.map((answer) => [answer.name, answer] as const))('%s', async (name, { path, ...answer }) => {
    const isGrid = name.startsWith('qwen');
    server = await standIn({ ...OF_FIXTURES, ...(isGrid && { grid: true, textTokens: () => 22 }) });
    const { status, json } = await post(path, requestText(name));
    expect(status).toBe(answer.status);
    if (answer.error) {
      const [sentence] = answer.error.message.split(/(?<=[!:.]) /);
      expect(json.error.message).toContain(sentence.replace(/[!:.]$/, ''));
    } else expect(json.usage.prompt_tokens).toBe(answer.prompt_tokens);
    expect(server.ended()).toBeNull();
  });
});

const rows = (count: number) => ({ data: new Float32Array(count * WIDTH).fill(0.5), dims: [count, WIDTH] });
const asked = (count: number) => {
  const part = toImageEmbeds(rows(count), { modelType: 'llava', hiddenSize: WIDTH });
  return JSON.stringify({
    model: 'tiny',
    messages: [{ role: 'user', content: [part, { type: 'text', text: 'what?' }] }],
  });
};
const CHAT = '/v1/chat/completions';

describe('at one time', () => {
  it('requests of one K are answered', async () => {
    server = await standIn(OF_FIXTURES);
    const answers = await Promise.all([16, 16, 16].map((count) => post(CHAT, asked(count))));
    for (const { json } of answers) checkUsage(json, 31);
    expect(server.seen).toEqual([[16], [16], [16]]);
  });

  it('requests of different K end it, and nobody is answered', async () => {
    server = await standIn(OF_FIXTURES);
    const answers = await Promise.all([16, 7].map((count) => post(CHAT, asked(count))));
    expect(answers.map(({ status }) => status)).toEqual([500, 500]);
    expect(answers[0].json.error.message).toMatch(/^EngineCore encountered an issue/);
    expect(server.ended()).toMatch(/inconsistent shapes/);
    await expect(post(CHAT, asked(16))).rejects.toThrow(/fetch failed/);
  });

  it('and do not where the server was mended', async () => {
    server = await standIn({ ...OF_FIXTURES, mended: true });
    const answers = await Promise.all([16, 7].map((count) => post(CHAT, asked(count))));
    expect(answers.map(({ status }) => status)).toEqual([200, 200]);
  });

  it('rows that do not fill their grid end it', async () => {
    server = await standIn({ ...OF_FIXTURES, grid: true });
    const options = { modelType: 'qwen2_5_vl', hiddenSize: WIDTH } as const;
    const { image_embeds } = toImageEmbeds({ features: rows(8), grid: [1, 4, 8] }, options);
    const part = { type: 'image_embeds', image_embeds: { ...(image_embeds as object), image_grid_thw: [1, 2, 18] } };
    const { status } = await post(CHAT, JSON.stringify({ messages: [{ content: [part] }] }));
    expect([status, server.ended()]).toEqual([500, 'split_with_sizes']);
  });
});

describe('the examples with the openai package', () => {
  const run = promisify(execFile);
  let model: StandInModel;
  let items: { question: string; pruned: string; image: string }[];
  beforeAll(async () => {
    await access(join(ROOT, 'dist/serving/index.js'));
    model = await tinyLlava();
    ({ items } = JSON.parse(await readFile(join(ROOT, 'models/expected.json'), 'utf8')));
  });

  async function example(...args: string[]): Promise<string[]> {
    const env = { ...process.env, OPENAI_BASE_URL: server.baseURL, OPENAI_API_KEY: 'none' };
    const { stdout } = await run(process.execPath, args, { cwd: ROOT, env });
    return stdout.trim().split('\n');
  }

  it.each([0, 1, 2])('answer as the whole model does, picture %i', async (i) => {
    server = await standIn(model);
    const { question, image, pruned } = items[i];
    const file = `models/eval/${image}`;
    expect(await example('examples/openai/pruned.mjs', question, file)).toEqual([`${file}: ${pruned}`]);
    expect(server.seen).toEqual([[16]]);
  });

  it('send pictures of different K one after the other', async () => {
    server = await standIn(model);
    const answers = await example('examples/openai/adaptive.mjs', 'gate');
    expect(answers.map((line) => /(\d+) visual tokens: \w+/.exec(line)?.[1])).toEqual(['16', '24', '32']);
    expect([server.ended(), server.seen.flat().sort()]).toEqual([null, [16, 24, 32]]);
  });

  it('send whole prompts of different K at once, with the same answers', async () => {
    server = await standIn(model);
    const whole = await example('examples/openai/adaptive.mjs', 'prompt');
    expect(server.ended()).toBeNull();
    await server.close();
    server = await standIn({ ...model, mended: true });
    expect(whole).toEqual(await example('examples/openai/adaptive.mjs', 'gate'));
  });
});
