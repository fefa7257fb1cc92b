/** Rows dropped inside the tower of LLaVA, LLaVA-NeXT and Video-LLaVA: which stay, where the others go, what is known of them. */
import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { AnyresImageProcessor } from '../../src/vision/anyres-images.js';
import { type EncodedImage, ImageProcessor, LlavaVision, openVisionModel } from '../../src/vision/index.js';
import { LlavaNextVision } from '../../src/vision/llava-next.js';
import { ROW_RULES, type RowRule, type TowerOptions } from '../../src/vision/tower-options.js';
import { VideoLlavaVision } from '../../src/vision/video-llava.js';
import { relativeError } from '../support.js';
import { imageOf } from '../transformers/family-cases.js';

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

interface Case {
  readonly image: string;
  readonly at: number;
  readonly by: RowRule;
  readonly kept: readonly number[];
  readonly end: readonly number[];
  readonly nearest: readonly number[];
}
const cases: readonly Case[] = JSON.parse(readFileSync('test/fixtures/tower/expected.json', 'utf8'));

describe("Hugging Face's modules", () => {
  it.each([1, 2].flatMap((at) => (['distance', 'class-token', 'flow'] as const).map((by) => [by, at] as const)))(
    'keep the same rows, and make the same of them: %s, block %i',
    async (by, at) => {
      const vision = await llava({ at, keep: 36, by });
      for (const { image: name, kept, end, nearest } of cases.filter((one) => one.by === by && one.at === at)) {
        const [image] = await vision.encode(await images.process(`models/eval/demo/${name}.png`));
        const { data, dims } = image.hidden;
        const products = Float32Array.from({ length: dims[0] }, (_, row) =>
          data.subarray(row * dims[1], (row + 1) * dims[1]).reduce((sum, x, i) => sum + x * Math.sin(i * i), 0),
        );
        expect(relativeError(products, end)).toBeLessThan(1e-4);
        // A map of ones where tokens are to be kept; the others join them, and the dropped ones do by the state at the cut.
        const few = kept.filter((_, i) => i % 9 === 0);
        const saliency = new Float32Array(PATCHES);
        for (const place of few) saliency[place] = 1;
        const pruned = await image.prune(null, { taskShare: 0, saliency, keep: few.length });
        expect([...pruned.indices]).toEqual(few);
        const dropped = [...Array(PATCHES).keys()].filter((place) => !kept.includes(place));
        expect([...(pruned.dropped ?? [])]).toEqual(dropped);
        expect(dropped.map((place) => pruned.assignment[place])).toEqual(dropped.map((place) => nearest[place]));
        image.dispose();
      }
    },
  );
});

describe('all()', () => {
  it('gives every token, to the bits of a model without the option', async () => {
    const [wanted, got] = [await llava(), await llava({ at: 1, keep: 0.25 })];
    const [plain] = await wanted.encode(pixels[0]);
    const [image] = await got.encode(pixels[0]);
    expect(await image.all()).toEqual(await plain.all());
    const [tiles] = await (await next()).encode(tiled);
    const [few] = await (await next({ at: 2, keep: 0.25 })).encode(tiled);
    expect((await few.all()).data).toEqual((await tiles.all()).data);
  });
});

describe('several images', () => {
  it('give in one run what each gives alone', async () => {
    const vision = await next({ at: 1, keep: 24 });
    const together = await vision.encode(tiled);
    const size = tiled.pixelValues.data.length / 2;
    for (const [i, image] of together.entries()) {
      const pixelValues = {
        data: (tiled.pixelValues.data as Float32Array).slice(i * size, (i + 1) * size),
        dims: [1, ...tiled.pixelValues.dims.slice(1)],
      };
      const imageSizes = { data: BigInt64Array.of(192n, 192n), dims: [1, 2] };
      const [alone] = await vision.encode({ pixelValues, imageSizes });
      const [one, other] = [await image.prune(QUESTION, { keep: 8 }), await alone.prune(QUESTION, { keep: 8 })];
      expect(one.indices).toEqual(other.indices);
      expect(one.dropped).toEqual(other.dropped);
      expect(one.dropped).toHaveLength(5 * (PATCHES - 24));
      expect([...one.tileCounts]).toEqual([8, 8, 8, 8, 8]);
      expect(relativeError(one.features.data as Float32Array, other.features.data as Float32Array)).toBeLessThan(1e-5);
    }
  });
});

describe('how much is kept', () => {
  const K = async (image: EncodedImage, how: object) =>
    (await image.prune(null, { taskShare: 0, ...how })).indices.length;
  it('is of all units of a tile, and at most those that stayed', async () => {
    const [image] = await (await llava({ at: 1, keep: 36 })).encode(pixels[0]);
    expect(await K(image, { keepRatio: 0.125 })).toBe(18);
    expect(await K(image, { keepRatio: 0.5 })).toBe(36);
    expect(await K(image, { keep: 100 })).toBe(36);
    expect(await K(image, { keep: 36 })).toBe(36);
    await expect(K(image, { keep: 145 })).rejects.toThrow('keep: got 145, wanted a count from 1 to 144');
  });
  it('is of an image of tiles too', async () => {
    const vision = await LlavaNextVision.open(NEXT, { clip: CLIP, tower: { at: 1, keep: 24 }, newline: 'none' });
    opened.push(vision);
    const [image] = await vision.encode(tiled);
    expect(await K(image, { keep: 40, allocation: 'image' })).toBe(40);
    expect(await K(image, { keep: 700, allocation: 'image' })).toBe(5 * 24);
    await expect(K(image, { keep: 721, allocation: 'image' })).rejects.toThrow(/from 1 to 720/);
  });
});

describe('other methods', () => {
  it('choose among the rows that stayed, by blocks behind the cut', async () => {
    const vision = await llava({ at: 2, keep: 36 }, { taps: ['penultimate'] });
    const [image] = await vision.encode(pixels[0]);
    for (const method of ['fastervlm', 'divprune', 'random', 'visionzip'] as const) {
      const { indices, dropped, assignment, choice } = await image.prune(QUESTION, { method, keep: 12 });
      expect(indices).toHaveLength(12);
      expect(choice?.order).toHaveLength(12);
      expect([...indices].some((place) => dropped?.includes(place))).toBe(false);
      if (method !== 'visionzip') expect([...(dropped ?? [])].every((place) => assignment[place] === -1)).toBe(true);
    }
    const merged = await image.prune(QUESTION, { method: 'divprune', methodOptions: { merging: true }, keep: 12 });
    expect(merged.assignment.every((k) => k >= 0)).toBe(true);
    expect(merged.counts.reduce((sum, count) => sum + count, 0)).toBe(36);
  });
});

describe('patches of padding', () => {
  const folder = 'test/fixtures/families/llava_next';
  it('are no units: a tile that has no more than stay drops none', async () => {
    const clip = `${folder}/clip`;
    const processor = await AnyresImageProcessor.open(folder);
    const inputs = await processor.process(imageOf([3, 96, 70]));
    const plain = await LlavaNextVision.open(`${folder}/onnx/vision_encoder.onnx`, { clip });
    opened.push(plain);
    const [whole] = await plain.encode(inputs);
    const all = await whole.prune('what is it ?', { keep: 16 });
    const least = Math.min(...all.tileCounts);
    expect(least).toBeLessThan(16);
    const cut = await LlavaNextVision.open(`${folder}/onnx/vision_encoder.onnx`, {
      clip,
      tower: { at: 1, keep: least },
    });
    opened.push(cut);
    const [image] = await cut.encode(inputs);
    const kept = await image.prune('what is it ?', { keep: 16 });
    expect([...kept.tileCounts]).toEqual([...all.tileCounts].map(() => least));
    expect(kept.dropped).toHaveLength(all.tileCounts.reduce((sum, count) => sum + count - least, 0));
    // What is no unit is not told of, and what is one has a token.
    expect(kept.assignment).toHaveLength(whole.tokenCount);
    expect([...kept.assignment].every((k) => k >= 0)).toBe(true);
    expect((await image.all()).data).toEqual((await whole.all()).data);
  });
});

describe('Video-LLaVA', () => {
  const folder = 'test/fixtures/families/video_llava';
  const encoder = `${folder}/onnx/vision_encoder.onnx`;
  it('drops rows of each frame; the class rows stay', async () => {
    const vision = await VideoLlavaVision.open(encoder, { clip: `${folder}/clip`, tower: { at: 1, keep: 4 } });
    opened.push(vision);
    const frames = await (await ImageProcessor.open(folder)).video(
      [0, 1, 2, 3, 4, 5, 6, 7].map((i) => imageOf([i, 40, 30])),
    );
    const [video] = await vision.encode({ pixelValuesVideos: frames });
    const kept = await video.prune('what is it ?', { keep: 4 });
    expect(kept.dropped).toHaveLength(8 * 12);
    expect([...kept.tileCounts]).toEqual(Array(8).fill(4));
    expect(kept.features.dims[1]).toBe(8 * 5);
  });
  it('refuses the original, whose frames see each other', async () => {
    const tower = { at: 1, keep: 4 };
    await expect(
      VideoLlavaVision.open(encoder, { clip: `${folder}/clip`, kind: 'video-llava', tower }),
    ).rejects.toThrow(/^tower: got a cut with kind: 'video-llava'/);
  });
});

describe('what cannot be', () => {
  const open = (tower: unknown, more: object = {}) => llava(tower as TowerOptions, more);
  it.each([
    ['no options', 3, /^tower: got 3, wanted \{ at, keep \}/],
    ['an unknown option', { at: 1, keep: 4, rule: 'random' }, /^tower: got the unknown option 'rule'/],
    ['no block', { keep: 4 }, /^tower.at: got undefined/],
    ['the first block', { at: 0, keep: 4 }, /^tower.at: got 0/],
    ['a block behind the last', { at: 3, keep: 4 }, /^tower.at: got 3, wanted an integer from 1 to 2/],
    ['no count', { at: 1 }, /^tower.keep: got undefined, wanted a share above 0 and below 1, or a count/],
    ['none', { at: 1, keep: 0 }, /^tower.keep: got 0/],
    ['a share above 1', { at: 1, keep: 1.5 }, /^tower.keep: got 1.5/],
    ['an unknown rule', { at: 1, keep: 4, by: 'saliency' }, /^tower.by: got 'saliency'/],
  ])('%s', async (_, tower, message) => {
    await expect(open(tower)).rejects.toThrow(message);
    await expect(open(tower)).rejects.toMatchObject({ code: 'ERR_VALUE' });
  });
  it('a tap in front of the cut', async () => {
    await expect(open({ at: 1, keep: 4 }, { taps: ['first'] })).rejects.toThrow(
      "taps: got 'first', block 0, beside tower.at: 1, wanted blocks behind the cut",
    );
  });
  it('an encoder that joins crops in its graph', async () => {
    const tower = { at: 1, keep: 4 };
    await expect(openVisionModel('test/fixtures/families/phi3_v', { tower })).rejects.toThrow(
      /^tower: got a cut of an encoder whose crops/,
    );
  });
  it('an image that is not finite', async () => {
    const data = new Float32Array(3 * 96 * 96).fill(Number.NaN);
    const vision = await llava({ at: 1, keep: 4 });
    const encode = vision.encode({ data, dims: [1, 3, 96, 96] });
    await expect(encode).rejects.toThrow(/^image: it is not finite behind the encoder/);
    await expect(encode).rejects.toMatchObject({ code: 'ERR_NOT_FINITE' });
  });
});
