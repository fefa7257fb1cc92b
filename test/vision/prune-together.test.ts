/** Several images that are pruned by one call of the pruner. */
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { ImageAnalysis } from '../../src/index.js';
import {
  type EncodedImage,
  LlavaVision,
  openVisionModel,
  type PrunedFeatures,
  type VisionModel,
} from '../../src/vision/index.js';
import { ROOT } from '../transformers/family-cases.js';

const FOLDER = join(ROOT, 'idefics3');
const LLAVA = 'models/tiny-llava/onnx/vision_encoder.onnx';
const QUESTIONS = ['what is it ?', 'what is the color ?', 'is it red ?'];
const TILES = [2, 5, 3];
const SIDE = 32;

let vision: VisionModel;
let images: EncodedImage[];
beforeAll(async () => {
  vision = await openVisionModel(FOLDER, { keep: 4 });
  images = [];
  for (const [i, tiles] of TILES.entries()) images.push(...(await vision.encode(inputs(tiles, i))));
});
afterEach(() => vi.restoreAllMocks());
afterAll(() => vision.dispose());

function inputs(tiles: number, seed: number) {
  const dims = [1, tiles, 3, SIDE, SIDE];
  return {
    pixelValues: { data: Float32Array.from({ length: tiles * 3 * SIDE ** 2 }, (_, i) => Math.sin(i * i + seed)), dims },
  };
}

/** All but the times. */
const plain = ({ timings: _, ...result }: PrunedFeatures) => ({ ...result, features: result.features.data });

describe('pruneImages', () => {
  it.each([
    ['of each tile', 1, [undefined, { keep: 3 }, { keepRatio: 0.5, merge: false }]],
    [
      'of each image, whose maps are taken by a call before',
      2,
      TILES.map(() => ({ keep: 9, allocation: 'image' as const })),
    ],
  ])('calls the pruner once for all tiles of all images, keep %s', async (_, calls, options) => {
    const alone: PrunedFeatures[] = [];
    for (const [i, image] of images.entries()) alone.push(await image.prune(QUESTIONS[i], options[i]));
    const batch = vi.spyOn(ImageAnalysis, 'pruneBatch');
    const together = await vision.pruneImages(images, QUESTIONS, options);
    expect(batch).toHaveBeenCalledTimes(calls);
    expect(batch.mock.calls.map(([analyses]) => analyses.length)).toEqual(new Array(calls).fill(10));
    expect(together.map(plain)).toEqual(alone.map(plain));
    for (const { timings } of together) expect(timings.prune).toBeGreaterThan(0);
  });

  it('takes options for none, the same image twice, and no image', async () => {
    const twice = await vision.pruneImages([images[0], images[0]], QUESTIONS.slice(0, 2));
    expect(plain(twice[1])).toEqual(plain(await images[0].prune(QUESTIONS[1])));
    expect(await vision.pruneImages([], [])).toEqual([]);
  });

  it('gives the maps by which it chooses', async () => {
    const batch = vi.spyOn(ImageAnalysis, 'pruneBatch');
    const maps = await vision.mapImages(images, QUESTIONS);
    expect(batch).toHaveBeenCalledTimes(1);
    const how = images.map(() => ({ maps: true }));
    const kept = await vision.pruneImages(images, QUESTIONS, how);
    expect(maps).toEqual(kept.map((one) => one.maps));
  });

  it('runs no projector for maps', async () => {
    await using llava = await LlavaVision.open(LLAVA, { clip: 'models/tiny-clip', keep: 4 });
    const data = Float32Array.from({ length: 2 * 3 * 96 * 96 }, (_, i) => Math.sin(i * i));
    const both = await llava.encode({ pixelValues: { data, dims: [2, 3, 96, 96] } });
    const project = vi.spyOn(llava, 'project');
    const asked = QUESTIONS.slice(1);
    expect((await llava.mapImages(both, asked)).map(({ saliency }) => saliency.length)).toEqual([144, 144]);
    expect(project).not.toHaveBeenCalled();
    await llava.pruneImages(both, asked);
    expect(project).toHaveBeenCalledTimes(2);
    for (const image of both) image.dispose();
  });

  it('knows the fewest units of an image', () => {
    expect(images.map(({ least }) => least)).toEqual(TILES);
  });

  it('names the image that is not finite, and the question that is not', async () => {
    const { pixelValues } = inputs(2, 4);
    pixelValues.data[7] = Number.NaN;
    const [bad] = await vision.encode({ pixelValues });
    await expect(vision.pruneImages([images[0], bad], QUESTIONS.slice(1))).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: /^images\[1\]: it is not finite behind the encoder/,
    });
    bad.dispose();
    const text = await vision.encodeQuestion(QUESTIONS[0]);
    const values = (text.embeddings.data as Float32Array).slice();
    values[0] = Number.NaN;
    const spoilt = { ...text, embeddings: { data: values, dims: text.embeddings.dims } };
    await expect(vision.pruneImages(images, [text, spoilt, text])).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: /^question: got NaN.* in row 0/,
    });
  });

  it('refuses what is no image of its own, and lists of another length', async () => {
    await using other = await openVisionModel(FOLDER);
    const prune = (...given: unknown[]) => other.pruneImages(...(given as Parameters<typeof other.pruneImages>));
    for (const [given, code, message] of [
      [[[images[0]], QUESTIONS.slice(2)], 'ERR_VALUE', /^images\[0\]: got an image of another model, wanted one that/],
      [[[{}], QUESTIONS.slice(2)], 'ERR_VALUE', /^images\[0\]: got Object, wanted one that this model encoded/],
      [[images[0], QUESTIONS], 'ERR_VALUE', /^images: got BlockImage, wanted a list/],
      [[[], QUESTIONS], 'ERR_SHAPE', /^questions: got 3 of them, wanted 0, one for each image/],
      [[[], 'what ?'], 'ERR_VALUE', /^questions: got 'what \?', wanted a list/],
      [[[], [], [{}]], 'ERR_SHAPE', /^options: got 1 of them, wanted 0/],
    ] as const)
      await expect(prune(...given)).rejects.toMatchObject({ name: 'DesapError', code, message });
    const unknown = vision.pruneImages(images.slice(2), QUESTIONS.slice(2), [{ kep: 3 } as never]);
    await expect(unknown).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: /^options\[0\]: got the unknown option/,
    });
    images[2].dispose();
    await expect(vision.pruneImages(images, QUESTIONS)).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  });
});
