import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { devices, saveHead } from '../../src/index.js';
import { extractHead } from '../../src/onnx/index.js';
import { Tensor } from '../../src/tensor.js';
import { ImageProcessor, LlavaVision } from '../../src/vision/index.js';

const ENCODER = 'models/tiny-llava/onnx/vision_encoder.onnx';
const CLIP = 'models/tiny-clip';
const QUESTION = 'what color is the star ?';

let folder: string;
let vision: LlavaVision;
let pixels: Tensor[];
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-vision-'));
  vision = await LlavaVision.open(ENCODER, { clip: CLIP });
  const images = await ImageProcessor.open('models/tiny-llava');
  pixels = await Promise.all(['02', '03', '04'].map((name) => images.process(`models/eval/demo/${name}.png`)));
});
afterAll(async () => {
  await vision.dispose();
  await rm(folder, { recursive: true });
});

describe('LlavaVision', () => {
  it('gives features, the decision and the time of each part', async () => {
    const { features, indices, source, assignment, counts, maps, timings } = await vision.prune(pixels[0], QUESTION, {
      keep: 16,
      maps: true,
    });
    expect(features.dims).toEqual([1, 16, 128]);
    expect([indices.length, source.length, counts.length, assignment.length]).toEqual([16, 16, 16, 144]);
    expect(maps?.task).toHaveLength(144);
    for (const part of ['vision', 'analyze', 'text', 'prune', 'projector'] as const)
      expect(timings[part]).toBeGreaterThan(0);
    expect(Object.keys(timings.stages).length).toBeGreaterThan(4);
  });

  it('gives the same for an image whether its memory is new, reused or shared with others', async () => {
    const first = await vision.prune(pixels[0], QUESTION, { keep: 16 });
    for (const other of [pixels[1], pixels[2], pixels[0]]) await vision.prune(other, QUESTION, { keep: 16 });
    const [again, ...others] = await Promise.all(pixels.map((image) => vision.prune(image, QUESTION, { keep: 16 })));
    expect(again.features.data).toEqual(first.features.data);
    for (const other of others) expect(other.features.data).not.toEqual(first.features.data);
  });

  it.runIf(devices().some(({ device, available }) => device === 'cpu' && available))(
    'lets the pruner read the hidden states where ONNX Runtime wrote them',
    async () => {
      const [warm] = await vision.encode(pixels[0]);
      const [seen] = await vision.encode(pixels[1]);
      // A copy would not see this change when it merges.
      const before = (await seen.prune(QUESTION, { keep: 4 })).features.data as Float32Array;
      seen.hidden.data.set(warm.hidden.data);
      const after = (await seen.prune(QUESTION, { keep: 4 })).features.data as Float32Array;
      expect(after).not.toEqual(before);
      for (const image of [warm, seen]) image.dispose();
    },
  );

  it('asks many questions of one image', async () => {
    const [seen] = await vision.encode(pixels[0]);
    using _ = seen;
    const [a, b] = await Promise.all([
      seen.prune(QUESTION, { keep: 8 }),
      seen.prune('what color is the sun ?', { keep: 8 }),
    ]);
    expect(a.indices).not.toEqual(b.indices);
    expect(a.timings.vision).toBe(b.timings.vision);
    const text = await vision.encodeQuestion(QUESTION);
    expect((await seen.prune(text, { keep: 8 })).indices).toEqual(a.indices);
  });

  it('takes a head file in place of the vision model', async () => {
    const head = join(folder, 'head.safetensors');
    await saveHead(await extractHead({ visionModel: join(CLIP, 'onnx', 'vision_model.onnx') }), head);
    const clip = join(folder, 'text-only');
    await cp(CLIP, clip, { recursive: true, filter: (path) => !/vision_model|model\.safetensors/.test(path) });
    const small = await LlavaVision.open(ENCODER, { clip, head, keep: 16 });
    const [a, b] = await Promise.all([small, vision].map((v) => v.prune(pixels[0], QUESTION, { keep: 16 })));
    expect(a.indices).toEqual(b.indices);
    expect((await small.prune(pixels[0], QUESTION)).indices).toEqual(b.indices);
    await expect(vision.prune(pixels[0], QUESTION)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/^keep: got undefined/),
    });
    await small.dispose();
    await expect(LlavaVision.open(ENCODER, { clip })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: /desap extract/,
    });
  });

  it('refuses a head of another encoder', async () => {
    const clip = join(folder, 'other');
    await cp(CLIP, clip, { recursive: true });
    const file = join(clip, 'onnx', 'vision_model.onnx');
    const bytes = await readFile(file);
    // Other weights in the middle of the file: an earlier layer of the tower differs.
    new Float32Array(4096).fill(0.01).forEach((value, i) => {
      bytes.writeFloatLE(value, (bytes.length >> 1) + 4 * i);
    });
    await writeFile(file, bytes);
    await expect(LlavaVision.open(ENCODER, { clip })).rejects.toMatchObject({ code: 'ERR_HEAD_MISMATCH' });
    const head = await extractHead({ visionModel: join(CLIP, 'onnx', 'vision_model.onnx') });
    await expect(LlavaVision.open(ENCODER, { clip: CLIP, head: { ...head, classToken: false } })).rejects.toMatchObject(
      { code: 'ERR_HEAD_MISMATCH' },
    );
  });

  it.each([
    ['an encoder that is not there', 'no/such.onnx', CLIP, 'ERR_FILE'],
    ['a file that is no model', 'package.json', CLIP, 'ERR_FILE'],
    ['an encoder without a projector', 'models/tiny-clip/onnx/vision_model.onnx', CLIP, 'ERR_GRAPH'],
    ['a CLIP folder that is not there', ENCODER, 'no/such', 'ERR_FILE'],
    ['a folder that is no CLIP folder', ENCODER, 'models/tiny-llava', 'ERR_FILE'],
  ])('refuses %s', async (_, encoder, clip, code) => {
    await expect(LlavaVision.open(encoder, { clip })).rejects.toMatchObject({ code });
  });

  it.each([
    ['two images', new Tensor('float32', new Float32Array(2 * 3 * 96 * 96), [2, 3, 96, 96]), QUESTION, 4],
    ['a flat image', new Tensor('float32', new Float32Array(12), [3, 4]), QUESTION, 4],
    ['NaN', new Tensor('float32', new Float32Array(3 * 96 * 96).fill(Number.NaN), [1, 3, 96, 96]), QUESTION, 4],
  ])('refuses %s', async (_, image, question, keep) => {
    await expect(vision.prune(image, question, { keep })).rejects.toMatchObject({ name: 'DesapError' });
  });

  it.each([
    ['an empty question', '', 4],
    ['keep 0', QUESTION, 0],
    ['keep 145 of 144', QUESTION, 145],
  ])('refuses %s', async (_, question, keep) => {
    await expect(vision.prune(pixels[0], question, { keep })).rejects.toMatchObject({ code: 'ERR_VALUE' });
  });

  it.each([
    [
      'null for an image',
      () => vision.prune(null as never, QUESTION, { keep: 4 }),
      'ERR_DTYPE',
      /^pixelValues: got null/,
    ],
    ['an object for one', () => vision.encode({} as never), 'ERR_DTYPE', /^pixelValues: got undefined/],
    [
      'ids for pixels',
      () => vision.prune(new Tensor('int64', new BigInt64Array(27648), [1, 3, 96, 96]), QUESTION, { keep: 4 }),
      'ERR_DTYPE',
      /^pixelValues: got int64/,
    ],
    [
      'two images',
      () => vision.prune(new Tensor('float32', new Float32Array(55296), [2, 3, 96, 96]), QUESTION, { keep: 4 }),
      'ERR_SHAPE',
      /^pixelValues: got 2 images, wanted one/,
    ],
    [
      'no question',
      () => vision.prune(pixels[0], undefined as never, { keep: 4 }),
      'ERR_VALUE',
      /^question: got undefined/,
    ],
    ['an object for rows', () => vision.project({} as never), 'ERR_DTYPE', /^rows: got Object/],
  ])('refuses %s by name', async (_, call, code, message) => {
    await vision.prune(pixels[0], QUESTION, { keep: 4 });
    await expect(call()).rejects.toMatchObject({ name: 'DesapError', code, message: expect.stringMatching(message) });
  });

  it('refuses an image of another size with a typed error', async () => {
    const image = new Tensor('float32', new Float32Array(3 * 48 * 48), [1, 3, 48, 48]);
    await expect(vision.prune(image, QUESTION, { keep: 4 })).rejects.toMatchObject({ name: 'DesapError' });
  });
});
