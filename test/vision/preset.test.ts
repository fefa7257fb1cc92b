/** Presets, and whose distances count for the diversity: in families of CLIP towers, and in one that merges behind its connector. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  AnyresImageProcessor,
  ImageProcessor,
  LlavaNextVision,
  LlavaVision,
  openVisionModel,
  type VisionPruneOptions,
} from '../../src/vision/index.js';
import { withoutPreset } from '../../src/vision/vision-choices.js';
import { normal, ROOT } from '../support.js';

const QUESTION = 'what color is the star ?';
const [LLAVA, CLIP] = [join(ROOT, 'models/tiny-llava'), join(ROOT, 'models/tiny-clip')];

describe('a preset', () => {
  it('stands for options, and what is given beside it wins', () => {
    const paper = { alignment: 'fcma', taskShare: 0.5, complement: 'saliency' };
    const best = { alignment: 'mean', taskShare: 0.5, complement: 'diversity', distances: 'projected' };
    expect(withoutPreset({ preset: 'paper' })).toEqual(paper);
    expect(withoutPreset({ preset: 'best', alignment: undefined })).toEqual(best);
    expect(withoutPreset({ preset: 'best', taskShare: 0.25 })).toEqual({ ...best, taskShare: 0.25 });
    expect(withoutPreset({ preset: 'best', complement: 'diversity' })).toEqual(best);
    expect(withoutPreset({ preset: 'best', complement: 'saliency' })).not.toHaveProperty('distances', 'projected');
    expect(withoutPreset({ taskShare: 1 })).toEqual({ taskShare: 1 });
  });
});

describe('diversity of a CLIP tower', async () => {
  const vision = await LlavaVision.open(join(LLAVA, 'onnx/vision_encoder.onnx'), { clip: CLIP });
  const images = await ImageProcessor.open(LLAVA);
  const [image] = await vision.encode(await images.process(join(ROOT, 'models/eval/demo/02.png')));
  const keep = 16;
  const kept = async (how: VisionPruneOptions) => {
    const { timings: _, ...result } = await image.prune(QUESTION, { keep, ...how });
    return result;
  };

  it('is that of the hidden states, unless the projected rows are asked for', async () => {
    const analysis = await image.analysis();
    const text = await vision.encodeQuestion(QUESTION);
    const how = { keep, complement: 'diversity', alignment: 'mean' } as const;
    const hidden = await analysis.prune(text, how);
    const projected = await analysis.prune(text, { ...how, distances: await image.all() });
    expect(projected.indices).not.toEqual(hidden.indices);
    for (const [options, want] of [
      [how, hidden],
      [{ preset: 'best', distances: 'hidden' }, hidden],
      [{ preset: 'best' }, projected],
    ] as const) {
      const { indices, source, assignment } = await kept(options);
      expect([indices, source, assignment]).toEqual([want.indices, want.source, want.assignment]);
    }
    expect(await kept({ preset: 'paper' })).toEqual(await kept({}));
    expect((await kept({ preset: 'best', taskShare: 1 })).source).toEqual(new Uint8Array(keep));
  });

  it.each([
    [{ preset: 'worst' }, /^preset: got 'worst', wanted 'paper' \| 'best'/],
    [{ complement: 'all' }, /^complement: got 'all'/],
    [{ preset: 'best', distances: 'near' }, /^distances: got 'near', wanted 'hidden' \| 'projected'/],
    [{ distances: 'projected' }, /^distances: got 'projected' without diversity, wanted complement: 'diversity'/],
  ])('refuses %o', async (how, message) => {
    await expect(image.prune(QUESTION, { keep, ...(how as object) })).rejects.toThrow(message);
    await expect(vision.pruneImages([image], [QUESTION], [{ keep, ...(how as object) }])).rejects.toThrow(message);
  });
});

describe('diversity of a tower behind its connector', () => {
  const folder = join(ROOT, 'test/fixtures/families/paligemma');

  it('is that of the projected rows, and has no hidden states', async () => {
    const { question, pixels } = JSON.parse(await readFile(join(folder, 'maps.json'), 'utf8'));
    const [, ...extents] = pixels;
    const size = extents.reduce((product: number, extent: number) => product * extent, 1);
    await using vision = await openVisionModel(folder, { keepRatio: 0.25 });
    const [image] = await vision.encode({ pixelValues: { data: normal(7, size), dims: [1, ...extents] } });
    using _ = image;
    const plain = await image.prune(question, { complement: 'diversity' });
    const projected = await image.prune(question, { complement: 'diversity', distances: 'projected' });
    expect(projected.indices).toEqual(plain.indices);
    expect(plain.indices).not.toEqual((await image.prune(question)).indices);
    await expect(image.prune(question, { complement: 'diversity', distances: 'hidden' })).rejects.toThrow(
      /^distances: got 'hidden', wanted 'projected'/,
    );
  });
});

describe('diversity of tiles', () => {
  it('is of each tile by itself, by the rows that are asked for', async () => {
    const vision = await LlavaNextVision.open(join(ROOT, 'models/tiny-llava-next/onnx/vision_encoder.onnx'), {
      clip: CLIP,
    });
    const images = await AnyresImageProcessor.open(join(ROOT, 'models/tiny-llava-next'));
    const [image] = await vision.encode(await images.process([join(ROOT, 'models/eval-next/images/000.png')]));
    const text = await vision.encodeQuestion(QUESTION);
    const kept = async (how: VisionPruneOptions) => (await image.prune(text, { preset: 'best', ...how })).indices;
    const [hidden, projected] = [await kept({ keep: 8, distances: 'hidden' }), await kept({ keep: 8 })];
    expect(projected).not.toEqual(hidden);
    expect(hidden).not.toEqual(await kept({ keep: 8, complement: 'saliency' }));
    expect(projected).toEqual(await kept({ keep: 8, distances: 'projected' }));
    const { tileCounts } = await image.prune(text, { preset: 'best', keep: 40, allocation: 'image' });
    expect(tileCounts.reduce((sum, count) => sum + count)).toBe(40);
    await vision.dispose();
  });
});
