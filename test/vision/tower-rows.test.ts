/** Rows dropped inside the tower of LLaVA, LLaVA-NeXT and Video-LLaVA: which stay, where the others go, what is known of them. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { devices, openBackend } from '../../src/index.js';
import { farthestPoints, mostDistant } from '../../src/kernels/farthest-points.js';
import { enteringStates } from '../../src/onnx/split.js';
import type { Tensor } from '../../src/tensor.js';
import { AnyresImageProcessor } from '../../src/vision/anyres-images.js';
import { type EncodedImage, ImageProcessor, LlavaVision, openVisionModel } from '../../src/vision/index.js';
import { LlavaNextVision } from '../../src/vision/llava-next.js';
import { unitsThatStay } from '../../src/vision/row-rules.js';
import { ROW_RULES, type TowerOptions } from '../../src/vision/tower-options.js';

const CLIP = 'models/tiny-clip';
const LLAVA = 'models/tiny-llava/onnx/vision_encoder.onnx';
const NEXT = 'models/tiny-llava-next/onnx/vision_encoder.onnx';
const QUESTION = 'what color is the star ?';
const PATCHES = 144;

const opened: { dispose(): Promise<void> }[] = [];
afterAll(async () => {
  for (const vision of opened) await vision.dispose();
});
async function llava(tower?: TowerOptions, more: object = {}): Promise<LlavaVision> {
  const vision = await LlavaVision.open(LLAVA, { clip: CLIP, ...(tower && { tower }), ...more });
  opened.push(vision);
  return vision;
}
async function next(tower?: TowerOptions): Promise<LlavaNextVision> {
  const vision = await LlavaNextVision.open(NEXT, { clip: CLIP, ...(tower && { tower }) });
  opened.push(vision);
  return vision;
}
const images = await ImageProcessor.open('models/tiny-llava');
const pixels = await Promise.all(['02', '03', '04'].map((name) => images.process(`models/eval/demo/${name}.png`)));
const anyres = await AnyresImageProcessor.open('models/tiny-llava-next');
const tiled = await anyres.process(['models/eval-next/images/000.png', 'models/eval-next/images/001.png']);

describe('nothing dropped', () => {
  it.each([
    { at: 1, keep: PATCHES },
    { at: 2, keep: 1000, by: 'class-token' },
  ] as const)('gives the bits of a model without the option: %o', async (tower) => {
    const [plain, cut] = [await llava(), await llava(tower)];
    const [wanted] = await plain.encode(pixels[0]);
    const [got] = await cut.encode(pixels[0]);
    expect(got.hidden.data).toEqual(wanted.hidden.data);
    for (const how of [{ keep: 16 }, { keep: 16, preset: 'best' }] as const) {
      const { timings: _, ...one } = await got.prune(QUESTION, how);
      const { timings: __, ...other } = await wanted.prune(QUESTION, how);
      expect(one).toEqual(other);
    }
    expect(await got.all()).toEqual(await wanted.all());
  });
  it('gives them for images in tiles', async () => {
    const [wanted] = await (await next()).encode(tiled);
    const [got] = await (await next({ at: 1, keep: PATCHES })).encode(tiled);
    const { timings: _, ...one } = await got.prune(QUESTION, { keep: 16 });
    const { timings: __, ...other } = await wanted.prune(QUESTION, { keep: 16 });
    expect(one).toEqual(other);
    expect((await got.all()).data).toEqual((await wanted.all()).data);
  });
});

describe.each(ROW_RULES)('%s', (by) => {
  it.each([1, 2])('drops rows in front of block %i, and says so', async (at) => {
    const [image] = await (await llava({ at, keep: 36, by })).encode(pixels[0]);
    expect(image.tokenCount).toBe(PATCHES);
    expect(image.hidden.dims).toEqual([37, 128]);
    const whole = await image.prune(QUESTION, { keep: PATCHES });
    const { dropped = new Int32Array() } = whole;
    expect(dropped).toHaveLength(PATCHES - 36);
    expect([...dropped].sort((a, b) => a - b)).toEqual([...dropped]);
    expect([...whole.indices, ...dropped].sort((a, b) => a - b)).toEqual([...Array(PATCHES).keys()]);
    expect([...whole.counts]).toEqual(Array(36).fill(1));
    expect(whole.features.dims).toEqual([1, 36, 128]);

    const few = await image.prune(QUESTION, { keep: 8, maps: true });
    expect(few.dropped).toEqual(dropped);
    expect([...few.indices].filter((place) => dropped.includes(place))).toEqual([]);
    expect(few.counts.reduce((sum, count) => sum + count, 0)).toBe(36);
    expect([...few.assignment].every((k) => k >= 0 && k < 8)).toBe(true);
    expect([...dropped].every((place) => few.maps?.saliency[place] === 0)).toBe(true);
    const apart = await image.prune(QUESTION, { keep: 8, merge: false });
    expect([...dropped].every((place) => apart.assignment[place] === -1)).toBe(true);
  });
});
