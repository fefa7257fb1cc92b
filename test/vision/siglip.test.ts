/** SigLIP's read-out: the text tower, and the pooling head out of files, against what PyTorch says of the model. */
import { copyFile, mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openBackend } from '../../src/index.js';
import { readSiglip, type SiglipVision } from '../../src/onnx/head/siglip.js';
import { siglipFromCheckpoint } from '../../src/onnx/head/siglip-checkpoint.js';
import { readSafeTensors, toFloat32 } from '../../src/safetensors.js';
import { float32 } from '../../src/tensor.js';
import { fitSiglip, readSiglipFolder } from '../../src/vision/siglip-head.js';
import { SiglipText } from '../../src/vision/siglip-text.js';
import { ROOT, relativeError, values } from '../support.js';

const FOLDER = join(ROOT, 'test/fixtures/siglip');
const { tensors } = await readSafeTensors(join(FOLDER, 'expected.safetensors'));
const expected = (name: string) => toFloat32(tensors.get(name)!, name);
const { texts, length } = JSON.parse(await readFile(join(FOLDER, 'expected.json'), 'utf8')) as {
  texts: string[];
  length: number;
};
const backend = openBackend({ device: 'cpu' });
afterAll(() => backend.dispose());

/** A folder with some files of the fixture, under other names. */
async function folderOf(files: Record<string, string>): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'desap-siglip-'));
  await mkdir(join(folder, 'onnx'));
  for (const [to, from] of Object.entries(files)) await copyFile(join(FOLDER, from), join(folder, to));
  return folder;
}

const TEXT_FILES = {
  'tokenizer.json': 'tokenizer.json',
  'tokenizer_config.json': 'tokenizer_config.json',
  'config.json': 'config.json',
};

describe('the text tower', () => {
  let folders: Record<string, string>;
  beforeAll(async () => {
    folders = {
      TorchScript: FOLDER,
      'torch.export, any length': await folderOf({
        ...TEXT_FILES,
        'onnx/text_model.onnx': 'onnx/text_model_dynamo.onnx',
      }),
    };
  });
  afterAll(() => rm(folders['torch.export, any length'], { recursive: true }));

  it.each(['TorchScript', 'torch.export, any length'])(
    'of %s embeds a text padded to the whole context',
    async (form) => {
      await using text = await SiglipText.open(folders[form]);
      expect(text.contextLength).toBe(length);
      for (const [i, sentence] of texts.entries()) {
        const { embeddings, endOfText } = await text.encode(sentence);
        expect([embeddings.dims, endOfText]).toEqual([[1, 32], 0]);
        expect(relativeError(embeddings.data as Float32Array, expected(`text.${i}`))).toBeLessThan(1e-5);
      }
      // Without padding the row would be another.
      expect(relativeError(expected('unpadded.0'), expected('text.0'))).toBeGreaterThan(0.1);
    },
  );

  it('embeds the words that say something, each by itself', async () => {
    await using text = await SiglipText.open(FOLDER, { text: 'words' });
    const { embeddings, endOfText } = await text.encode(texts[0]);
    expect(embeddings.dims).toEqual([4 - 1, 32]);
    const rows = ['what', 'colour', 'dog'].map((word) => expected(`word.${word}`));
    expect(
      relativeError(
        embeddings.data as Float32Array,
        rows.flatMap((row) => [...row]),
      ),
    ).toBeLessThan(1e-5);
    expect(relativeError(endOfText as Float32Array, expected('text.0'))).toBeLessThan(1e-5);
    const silent = await text.encode('is it on the');
    expect(silent.embeddings.dims).toEqual([1, 32]);
  });

  it('cuts a text that is too long, into parts or off, or refuses it', async () => {
    const words = Array.from({ length: length + 4 }, (_, i) => ['red', 'ball', 'cat'][i % 3]);
    const [first, second] = [words.slice(0, length - 1), words.slice(length - 1)].map((some) => some.join(' '));
    await using parts = await SiglipText.open(FOLDER);
    await using off = await SiglipText.open(FOLDER, { longText: 'truncate' });
    await using none = await SiglipText.open(FOLDER, { longText: 'error' });
    const row = async (text: string) => (await parts.encode(text)).embeddings.data as Float32Array;
    const unit = (x: Float32Array) => x.map((value) => value / Math.hypot(...x));
    const [a, b] = [unit(await row(first)), unit(await row(second))];
    expect(
      relativeError(
        await row(words.join(' ')),
        a.map((value, i) => value + b[i]),
      ),
    ).toBeLessThan(1e-5);
    const cut = (await off.encode(words.join(' '))).embeddings.data as Float32Array;
    expect(cut).toEqual(await row(first));
    await expect(none.encode(words.join(' '))).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/^text: got 21 tokens, wanted at most 16/),
    });
  });

  it('refuses what is no text, and a folder without one', async () => {
    await using text = await SiglipText.open(FOLDER);
    for (const bad of ['', ' \n', 5, null])
      await expect(text.encode(bad as string)).rejects.toMatchObject({ code: 'ERR_VALUE' });
    await expect(SiglipText.open(join(ROOT, 'docs'))).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(
        /text_model\.onnx: got no such file \(nor .*\), wanted the text tower of a SigLIP$/,
      ),
    });
    await expect(SiglipText.open('')).rejects.toThrow(/^folder: got ''/);
    await expect(SiglipText.open(FOLDER, { text: 'tokens' as never })).rejects.toThrow(
      /^text: got 'tokens', wanted 'pooled' \| 'words'/,
    );
    await expect(SiglipText.open(FOLDER, { words: true } as never)).rejects.toThrow(
      /^options: got the unknown option 'words'/,
    );
    await text.dispose();
    await expect(text.encode('a dog')).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  });
});

describe.each<[string, () => Promise<SiglipVision>]>([
  ['TorchScript', () => readSiglip(ort, join(FOLDER, 'onnx/vision_model.onnx'), { backend })],
  ['torch.export', () => readSiglip(ort, join(FOLDER, 'onnx/vision_model_dynamo.onnx'), { backend })],
  ['safetensors', () => siglipFromCheckpoint(join(FOLDER, 'model.safetensors'))],
])('the pooling head from %s', (_, read) => {
  let siglip: SiglipVision;
  beforeAll(async () => {
    siglip = await read();
  });

  it('gives each row what the model makes of a sequence of that row', async () => {
    const { head, heads, epsilon } = siglip;
    const dense = ({ weight, bias }: typeof head.q) => ({
      weight: float32(weight, [bias.length, weight.length / bias.length]),
      bias,
    });
    const query = await backend.linear({ x: float32(head.probe, [1, 32]), ...dense(head.q) });
    const got = await backend.siglipReadOut({
      attention: float32(expected('ending'), [16, 32]),
      query: values(query),
      postNorm: head.postNorm,
      key: dense(head.k),
      value: dense(head.v),
      out: dense(head.out),
      norm: head.norm,
      fc1: dense(head.fc1),
      fc2: dense(head.fc2),
      ...{ heads, epsilon },
    });
    expect(relativeError(values(got.embeddings), expected('embeddings'))).toBeLessThan(1e-5);
    expect(relativeError(got.global, expected('global'))).toBeLessThan(1e-5);
    expect(relativeError(got.saliency, expected('probe'))).toBeLessThan(1e-5);
  });

  it('comes with the last block, and the one in front of it', async () => {
    const { tensors: stored } = await readSafeTensors(join(FOLDER, 'model.safetensors'));
    for (const [i, block] of siglip.blocks.entries())
      for (const [field, name] of [
        ['q', 'q_proj'],
        ['k', 'k_proj'],
        ['v', 'v_proj'],
        ['out', 'out_proj'],
      ] as const) {
        const key = `vision_model.encoder.layers.${3 - i}.self_attn.${name}`;
        expect(relativeError(block[field].weight, toFloat32(stored.get(`${key}.weight`)!))).toBeLessThan(1e-5);
        expect(relativeError(block[field].bias!, toFloat32(stored.get(`${key}.bias`)!))).toBeLessThan(1e-5);
      }
    expect([siglip.blocks[0].heads, siglip.heads, siglip.epsilon]).toEqual([4, 4, 1e-6]);
  });

  it('stands behind the block that a tower ends with, or in front of one that it leaves out', () => {
    const [last, before] = siglip.blocks;
    expect(fitSiglip(last, siglip, FOLDER)).toMatchObject({ beyond: false, block: { q: last.q, siglip: siglip.head } });
    expect(fitSiglip(before, siglip, FOLDER)).toMatchObject({
      beyond: true,
      block: { q: last.q, siglip: siglip.head },
    });
  });

  it('is refused for another tower', () => {
    const [last] = siglip.blocks;
    const turned = { ...last, q: last.k, k: last.q };
    expect(() => fitSiglip(turned, siglip, FOLDER)).toThrow(
      /^siglip: got .*, whose last blocks differ from the vision encoder's by 1\.\d+ of their size/,
    );
    expect(() => fitSiglip({ ...last, heads: 8 }, siglip, FOLDER)).toThrow(
      /^siglip: got a SigLIP of 32 columns and 4 heads in .*, wanted the one that the vision encoder is: 32 columns, 8 heads/,
    );
    expect(() => fitSiglip({ ...last, epsilon: 1e-5 }, siglip, FOLDER)).toThrow(
      /epsilon of 0\.000001, wanted 0\.00001, as/,
    );
  });
});

describe('a SigLIP folder', () => {
  it('warns once of a tower that was tuned', async () => {
    const siglip = await siglipFromCheckpoint(join(FOLDER, 'model.safetensors'));
    const [last] = siglip.blocks;
    const tuned = { ...last, v: { ...last.v, weight: last.v.weight.map((value, i) => value * (1 + 0.02 * (i % 2))) } };
    const warnings: string[] = [];
    const listen = (warning: Error & { code?: string }) =>
      warning.code === 'DESAP_SIGLIP' && warnings.push(warning.message);
    process.on('warning', listen);
    fitSiglip(tuned, siglip, FOLDER);
    fitSiglip(tuned, siglip, FOLDER);
    await new Promise((resolve) => setImmediate(resolve));
    process.off('warning', listen);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toMatch(/differs from .* by 0\.014 of the weights' size/);
  });

  it('is read from its ONNX file, else from its weights', async () => {
    const exported = await readSiglipFolder(ort, FOLDER, { backend });
    const folder = await folderOf({ 'model.safetensors': 'model.safetensors', 'config.json': 'config.json' });
    const stored = await readSiglipFolder(ort, folder, { backend });
    await rm(folder, { recursive: true });
    expect(relativeError(exported.head.v.weight, stored.head.v.weight)).toBeLessThan(1e-6);
  });

  it('is refused without either, and where its tower is a CLIP', async () => {
    await expect(readSiglipFolder(ort, join(ROOT, 'docs'), { backend })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(
        /vision_model\.onnx: got no such file \(nor .*\), wanted the vision tower of a SigLIP$/,
      ),
    });
    await expect(readSiglipFolder(ort, join(ROOT, 'models/tiny-clip'), { backend })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringMatching(
        /looked for SigLIP's pooling head, a probe's attention with a residual MLP at the end; found behind/,
      ),
    });
    await expect(siglipFromCheckpoint(join(ROOT, 'models/tiny-clip/model.safetensors'))).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(/looked for a tensor 'vision_model\.head\.probe' of SigLIP; found none$/),
    });
  });
});
