/** Video-LLaVA over plain onnxruntime: Hugging Face's ids, unpruned and for given kept sets; class rows, frames, images. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Tensor } from '../../src/tensor.js';
import {
  type CompactOptions,
  compact,
  type EncodedImage,
  ImageProcessor,
  openVisionModel,
} from '../../src/vision/index.js';
import { VideoLlavaVision, type VideoLlavaVisionOptions } from '../../src/vision/video-llava.js';
import { relativeError } from '../support.js';
import { imageOf, type Size } from '../transformers/family-cases.js';
import { PlainLoop } from './plain-loop.js';

const FOLDER = 'test/fixtures/families/video_llava';
const ENCODER = join(FOLDER, 'onnx/vision_encoder.onnx');
const CLIP = join(FOLDER, 'clip');
const VIDEO_TOKEN = 298;
const [FRAMES, PATCHES] = [8, 16];
const QUESTION = 'what is it ?';

interface Case {
  readonly frames: readonly Size[];
  readonly input_ids: number[];
  readonly unpruned: number[];
  readonly tokens: number;
  readonly kept: number[][];
  readonly [policy: string]: unknown;
}
const {
  cases: [given],
  never_generated: never,
  max_new_tokens: count,
}: { cases: Case[]; never_generated: number[]; max_new_tokens: number } = JSON.parse(
  await readFile(join(FOLDER, 'expected.json'), 'utf8'),
);

let loop: PlainLoop;
let processor: ImageProcessor;
let pixelValuesVideos: Tensor;
const opened: VideoLlavaVision[] = [];
async function visionOf(options: Partial<VideoLlavaVisionOptions> = {}): Promise<VideoLlavaVision> {
  const vision = await VideoLlavaVision.open(ENCODER, { clip: CLIP, ...options });
  opened.push(vision);
  return vision;
}
const framesOf = (order: readonly number[]) => processor.video(order.map((frame) => imageOf(given.frames[frame])));

beforeAll(async () => {
  loop = await PlainLoop.open(FOLDER, VIDEO_TOKEN);
  processor = await ImageProcessor.open(FOLDER);
  pixelValuesVideos = await framesOf([0, 1, 2, 3, 4, 5, 6, 7]);
});
afterAll(async () => {
  await loop.release();
  for (const vision of opened) await vision.dispose();
});

async function idsOf(kept: CompactOptions['kept'], positions: 'compact' | 'original', features: Tensor) {
  const prompt = compact({ inputIds: given.input_ids, imageTokenId: VIDEO_TOKEN, kept, positions });
  return loop.generate({ ...prompt, features: [features] }, count, never);
}

describe('Video-LLaVA', () => {
  let vision: VideoLlavaVision;
  let video: EncodedImage;
  beforeAll(async () => {
    vision = await visionOf();
    [video] = await vision.encode({ pixelValuesVideos });
  });

  it('takes the frames that Hugging Face takes', () => {
    expect(pixelValuesVideos.dims).toEqual([1, FRAMES, 3, 32, 32]);
  });

  it('gives all tokens, class rows too, and the ids of Hugging Face', async () => {
    expect(video.medium).toBe('video');
    expect(video.tokenCount).toBe(given.tokens);
    expect(video.tiles).toEqual(given.frames.map((_, frame) => ({ frame, rows: 4, columns: 4 })));
    const indices = Int32Array.from({ length: given.tokens }, (_, i) => i);
    const everything = { indices, assignment: new Int32Array(given.tokens) };
    expect(await idsOf(everything, 'compact', await video.all())).toEqual(given.unpruned);
    const kept = await video.prune(QUESTION, { keep: PATCHES });
    expect(kept.indices).toEqual(indices);
    expect(await idsOf(kept, 'compact', kept.features)).toEqual(given.unpruned);
  });

  it.each([
    ['keep', 'compact'],
    ['keep', 'original'],
    ['drop', 'compact'],
    ['drop', 'original'],
  ] as const)('gives the ids of Hugging Face for given patches: class rows %s, %s', async (classRows, positions) => {
    const [own] = await (await visionOf({ classRows })).encode({ pixelValuesVideos });
    const { ids, tokens } = given[`class rows ${classRows} ${positions}`] as { ids: number[]; tokens: number };
    const places = given.kept.flatMap((patches, frame) => patches.map((patch) => frame * (PATCHES + 1) + 1 + patch));
    const saliency = new Float32Array(given.tokens);
    for (const place of places) saliency[place] = 1;
    const how = { taskShare: 0, saliency, merge: false, allocation: 'image', keep: places.length } as const;
    const kept = await own.prune(null, how);
    expect([...kept.indices].filter((_, k) => kept.source[k] !== 2)).toEqual(places);
    expect(kept.indices).toHaveLength(tokens);
    if (classRows === 'keep')
      expect([...kept.indices].filter((place) => place % (PATCHES + 1) === 0)).toHaveLength(FRAMES);
    expect(await idsOf(kept, positions, kept.features)).toEqual(ids);
    own.dispose();
  });

  it('is opened by the model type of its config', async () => {
    const own = await openVisionModel(FOLDER, { clip: CLIP, classRows: 'drop', keepRatio: 0.25 });
    expect(own.family).toBe('video_llava');
    expect((await own.prune({ pixelValuesVideos }, QUESTION)).indices).toHaveLength(32);
    await own.dispose();
  });

  it('is read where it is quantised, the convolution of its patches too', async () => {
    const own = await VideoLlavaVision.open('test/fixtures/families/forms/video_llava.q8.onnx', { clip: CLIP });
    opened.push(own);
    const [quantised] = await own.encode({ pixelValuesVideos });
    expect(quantised.tokenCount).toBe(video.tokenCount);
    const [got, wanted] = [await quantised.all(), await video.all()];
    expect(relativeError(got.data as Float32Array, wanted.data as Float32Array)).toBeLessThan(0.1);
  });

  it('keeps K of each frame, or shares those of the video', async () => {
    const frame = await video.prune(QUESTION, { keep: 5 });
    expect([...frame.tileCounts]).toEqual(new Array(FRAMES).fill(5));
    const whole = await video.prune(QUESTION, { keep: 40, allocation: 'image' });
    expect(whole.tileCounts.reduce((sum, own) => sum + own)).toBe(40);
    expect(whole.indices).toHaveLength(48);
    expect(whole.task).toEqual({ form: 'clip' });
  });

  it('gives frames in another order the same tokens in that order: they do not see each other', async () => {
    const order = [3, 0, 7, 1, 6, 2, 5, 4];
    const [other] = await vision.encode({ pixelValuesVideos: await framesOf(order) });
    const [a, b] = await Promise.all([video, other].map((one) => one.prune(QUESTION, { keep: 4 })));
    const width = a.features.dims[2];
    const rows = ({ features }: typeof a, frame: number) =>
      (features.data as Float32Array).subarray(frame * 5 * width, (frame + 1) * 5 * width);
    for (const [to, from] of order.entries()) expect(relativeError(rows(b, to), rows(a, from))).toBeLessThan(1e-5);
    other.dispose();
  });

  it('takes several videos, one without a batch, and images, which come first', async () => {
    const size = pixelValuesVideos.size / FRAMES;
    const frames = pixelValuesVideos.data as Float32Array;
    const two = new Tensor('float32', Float32Array.from([...frames, ...frames]), [2, FRAMES, 3, 32, 32]);
    const pixelValues = new Tensor('float32', frames.slice(0, 2 * size), [2, 3, 32, 32]);
    const all = await vision.encode({ pixelValues, pixelValuesVideos: two });
    expect(all.map(({ medium }) => medium)).toEqual(['image', 'image', 'video', 'video']);
    expect(all.map(({ tokenCount }) => tokenCount)).toEqual([16, 16, 136, 136]);
    const short = await vision.encode({
      pixelValuesVideos: new Tensor('float32', frames.slice(0, 3 * size), [3, 3, 32, 32]),
    });
    expect(short[0].tiles).toHaveLength(3);
    const kept = await Promise.all([video, ...all.slice(2)].map((one) => one.prune(QUESTION, { keep: 3 })));
    for (const one of kept) expect(one.indices).toEqual(kept[0].indices);
    // The class row is dropped; the image tower of this model is not that of its videos, so no CLIP folder here is its own.
    expect((await all[0].all()).dims).toEqual([1, 16, 24]);
    await expect(all[1].prune(QUESTION, { keep: 3 })).rejects.toMatchObject({
      code: 'ERR_HEAD_MISMATCH',
      message: expect.stringMatching(/option imageClip names the CLIP folder of images/),
    });
    for (const one of [...all, ...short]) one.dispose();
  });

  it('prunes images by the CLIP that is theirs', async () => {
    const frames = pixelValuesVideos.data as Float32Array;
    const pixelValues = new Tensor('float32', frames.slice(0, frames.length / 4), [2, 3, 32, 32]);
    // The video tower once more, for images: it has the class row among its features, which is dropped.
    for (const options of [{ imageEncoder: ENCODER }, { imageEncoder: ENCODER, imageClip: CLIP }]) {
      const own = await visionOf(options);
      const [, image] = await own.encode({ pixelValues });
      const { features, indices, tileCounts } = await image.prune(QUESTION, { keep: 3 });
      expect([...tileCounts]).toEqual([3]);
      const frame = (await video.prune(QUESTION, { keep: 3 })).indices;
      expect([...indices]).toEqual([...frame.slice(5, 8)].map((place) => place - (PATCHES + 1) - 1));
      expect(features.dims).toEqual([1, 3, 24]);
      // Together with a video, whatever device each tower's analyses are on.
      const [short] = await own.encode({ pixelValuesVideos });
      const both = await own.pruneImages([short, image], [QUESTION, QUESTION], [{ keep: 3 }, { keep: 3 }]);
      expect(both.map((one) => one.indices)).toEqual([(await short.prune(QUESTION, { keep: 3 })).indices, indices]);
      for (const one of [image, short]) one.dispose();
    }
  });

  it.each<[string, () => object, string, RegExp]>([
    ['nothing', () => ({}), 'ERR_DTYPE', /^pixelValuesVideos: got undefined/],
    [
      'a video without frames',
      () => ({ pixelValuesVideos: new Tensor('float32', new Float32Array(0), [1, 0, 3, 32, 32]) }),
      'ERR_SHAPE',
      /^pixelValuesVideos.dims: got \[1, 0, 3, 32, 32\]/,
    ],
    [
      'frames of another size',
      () => ({ pixelValuesVideos: new Tensor('float32', new Float32Array(8 * 768), [1, 8, 3, 16, 16]) }),
      'ERR_SHAPE',
      /^pixelValuesVideos: got/,
    ],
    [
      'inputs of other families',
      () => ({ pixelValuesVideos, videoGridThw: pixelValuesVideos }),
      'ERR_VALUE',
      /unknown option 'videoGridThw'/,
    ],
  ])('refuses %s', async (_, inputs, code, message) => {
    await expect(vision.encode(inputs())).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });

  it('says which frame is not finite, and others can be pruned', async () => {
    const data = (pixelValuesVideos.data as Float32Array).slice();
    data[5 * (data.length / FRAMES)] = Number.NaN;
    const [bad, good] = await vision.encode({
      pixelValuesVideos: new Tensor(
        'float32',
        Float32Array.from([...data, ...(pixelValuesVideos.data as Float32Array)]),
        [2, FRAMES, 3, 32, 32],
      ),
    });
    await expect(bad.prune(QUESTION, { keep: 2 })).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(/^image: it is not finite .*hidden states of tile 5: got NaN/),
    });
    expect((await good.prune(QUESTION, { keep: 2 })).indices).toHaveLength(24);
    for (const one of [bad, good]) one.dispose();
  });

  it.each([
    ['kind', { kind: 'video' as never }, 'ERR_VALUE'],
    ['classRows', { classRows: true as never }, 'ERR_VALUE'],
    ['imageEncoder', { imageEncoder: '' }, 'ERR_VALUE'],
    ['imageClip', { imageClip: 3 as never }, 'ERR_VALUE'],
    ['test/fixtures/families/video_llava/clip/model.safetensors', { kind: 'video-llava' as const }, 'ERR_FILE'],
  ])('refuses a bad %s', async (argument, options, code) => {
    const message = expect.stringMatching(new RegExp(`^${argument}: got`));
    await expect(visionOf(options)).rejects.toMatchObject({ code, message });
  });
});
