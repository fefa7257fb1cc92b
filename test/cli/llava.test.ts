import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { InferenceSession } from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Llava } from '../../src/cli/llava/llava.js';
import { Tensor } from '../../src/tensor.js';
import { ImageProcessor } from '../../src/vision/index.js';
import { relativeError } from '../support.js';

const MODEL = 'models/tiny-llava';
const CLIP = 'models/tiny-clip';
const IMAGE = 'models/eval/demo/02.png';
const QUESTION = 'what color is the star ?';

let llava: Llava;
let folder: string;
beforeAll(async () => {
  llava = await Llava.open(MODEL, { clip: CLIP });
  folder = await mkdtemp(join(tmpdir(), 'desap-llava-'));
});
afterAll(async () => {
  await llava.dispose();
  await rm(folder, { recursive: true });
});

describe('Llava', () => {
  it('answers with all tokens by default', async () => {
    const answer = await llava.answer(IMAGE, QUESTION);
    expect(answer).toMatchObject({ text: 'purple', tokens: 144, promptTokens: 152 });
    expect(answer.pruned).toBeUndefined();
    expect(answer.timings.vision).toBeGreaterThan(0);
    expect(answer.timings.prune).toBe(0);
  });

  it('answers with pruned tokens', async () => {
    const answer = await llava.answer(IMAGE, QUESTION, { keep: 16, maps: true });
    expect(answer).toMatchObject({ tokens: 16, promptTokens: 24 });
    expect(answer.pruned?.features.dims).toEqual([1, 16, 128]);
    expect(answer.pruned?.maps?.task).toHaveLength(144);
    for (const part of ['vision', 'prune', 'projector', 'prefill'] as const)
      expect(answer.timings[part]).toBeGreaterThan(0);
  });

  it('all tokens and every patch are what the file itself computes', async () => {
    const session = await InferenceSession.create(`${MODEL}/onnx/vision_encoder.onnx`);
    const pixelValues = await (await ImageProcessor.open(MODEL)).process(IMAGE);
    const { [session.outputNames[0]]: want } = await session.run({ [session.inputNames[0]]: pixelValues });
    using seen = await llava.see(IMAGE);
    const kept = await seen.answer(QUESTION, { keep: 144 });
    for (const features of [await seen.image.all(), kept.pruned?.features]) {
      expect(features?.dims).toEqual(want.dims);
      expect(relativeError(features?.data as Float32Array, want.data as Float32Array)).toBeLessThan(1e-6);
    }
    expect(kept.text).toBe('purple');
    await session.release();
  });

  it('takes bytes, decoded pixels and many questions', async () => {
    using fromBytes = await llava.see(new Uint8Array(await readFile(IMAGE)));
    using fromPixels = await llava.see(await (await ImageProcessor.open(MODEL)).rgb(IMAGE));
    for (const question of [QUESTION, 'what shape is the green thing ?', 'is there a red ring ?']) {
      const a = await fromPixels.answer(question, { keep: 24 });
      const b = await fromBytes.answer(question, { keep: 24 });
      expect(a.text).toBe(b.text);
      expect(a.pruned?.indices).toEqual(b.pruned?.indices);
    }
  });

  it('keeps a ratio', async () => {
    expect(await llava.answer(IMAGE, QUESTION, { keepRatio: 0.1 })).toMatchObject({ tokens: 14 });
  });

  it('answers several questions at once', async () => {
    using seen = await llava.see(IMAGE);
    const questions = [QUESTION, 'what color is the sun ?', 'what shape is the green thing ?'];
    const one = await Promise.all(questions.map((question) => seen.answer(question, { keep: 32 })));
    for (const [i, question] of questions.entries())
      expect(one[i].pruned?.indices).toEqual((await llava.answer(IMAGE, question, { keep: 32 })).pruned?.indices);
  });

  it('gives kept tokens their own places on demand', async () => {
    using seen = await llava.see(IMAGE);
    const { pruned } = await seen.answer(QUESTION, { keep: 16 });
    const compact = await llava.complete({ features: pruned!.features, kept: pruned }, QUESTION);
    const original = await llava.complete({ features: pruned!.features, kept: pruned }, QUESTION, {
      positions: 'original',
    });
    expect([compact.promptTokens, original.promptTokens]).toEqual([24, 24]);
    const all = { indices: Int32Array.from({ length: 144 }, (_, i) => i), assignment: new Int32Array(144) };
    const kept = { features: await seen.image.all(), kept: all };
    expect((await llava.complete(kept, QUESTION, { positions: 'original' })).text).toBe(
      (await llava.complete(kept, QUESTION)).text,
    );
  });

  it('decodes on with its cache until it may stop', async () => {
    const open = join(folder, 'no-end');
    await cp(MODEL, open, { recursive: true });
    await writeFile(join(open, 'generation_config.json'), JSON.stringify({ eos_token_id: [2], max_new_tokens: 4 }));
    const endless = await Llava.open(open, { clip: CLIP });
    const { ids, timings } = await endless.answer(IMAGE, QUESTION);
    expect(ids).toHaveLength(4);
    expect(timings.decode).toBeGreaterThan(0);
    const { ids: longer } = await endless.answer(IMAGE, QUESTION, { maxNewTokens: 6 });
    expect(longer.slice(0, 4)).toEqual(ids);
    await endless.dispose();
  });

  it('opens a folder with its chat template in a file of its own, as transformers 5 saves it', async () => {
    const saved = join(folder, 'saved');
    await cp(MODEL, saved, { recursive: true });
    const { chat_template, ...config } = JSON.parse(await readFile(join(saved, 'tokenizer_config.json'), 'utf8'));
    await writeFile(join(saved, 'tokenizer_config.json'), JSON.stringify(config));
    await writeFile(join(saved, 'chat_template.jinja'), chat_template);
    const other = await Llava.open(saved, { clip: CLIP });
    expect(await other.answer(IMAGE, QUESTION)).toMatchObject({ text: 'purple', promptTokens: 152 });
    await other.dispose();
  });

  it.each([
    ['an empty question', '  ', {}, 'ERR_VALUE'],
    ['an image token in the question', 'is <image> there ?', {}, 'ERR_VALUE'],
    ['keep 0', QUESTION, { keep: 0 }, 'ERR_VALUE'],
    ['keep 200 of 144', QUESTION, { keep: 200 }, 'ERR_VALUE'],
    ['no new tokens', QUESTION, { maxNewTokens: 0 }, 'ERR_VALUE'],
    ['unknown positions', QUESTION, { positions: 'middle' as never }, 'ERR_VALUE'],
  ])('refuses %s', async (_, question, options, code) => {
    await expect(llava.answer(IMAGE, question, options)).rejects.toMatchObject({ code });
  });

  it('refuses features that are not those of the kept patches', async () => {
    const kept = { indices: Int32Array.from([1, 2]), assignment: new Int32Array(144) };
    const features = new Tensor('float32', new Float32Array(3 * 128), [1, 3, 128]);
    await expect(llava.complete({ features, kept }, QUESTION)).rejects.toMatchObject({ code: 'ERR_SHAPE' });
    const narrow = new Tensor('float32', new Float32Array(2 * 64), [1, 2, 64]);
    await expect(llava.complete({ features: narrow, kept }, QUESTION)).rejects.toMatchObject({ code: 'ERR_SHAPE' });
  });

  it('refuses folders that are missing, or without their files', async () => {
    await expect(Llava.open('no/such', { clip: CLIP })).rejects.toMatchObject({ code: 'ERR_FILE' });
    await expect(Llava.open('models/tiny-clip', { clip: CLIP })).rejects.toMatchObject({ name: 'DesapError' });
    await expect(Llava.open(MODEL, { clip: 'no/such' })).rejects.toMatchObject({ code: 'ERR_FILE' });
    const partial = join(folder, 'partial');
    await cp(MODEL, partial, { recursive: true, filter: (path) => !path.endsWith('embed_tokens.onnx') });
    await expect(Llava.open(partial, { clip: CLIP })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: /embed_tokens/,
    });
  });
});
