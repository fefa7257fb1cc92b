/** Rows dropped inside the towers of encoders with a last block of their own: which stay, where the others go, what is known of them. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlockVision } from '../../src/vision/block-vision.js';
import { IDEFICS3 } from '../../src/vision/idefics3.js';
import { openVisionModel, type VisionInputs } from '../../src/vision/index.js';
import type { TowerOptions } from '../../src/vision/tower-options.js';
import { normal, relativeError } from '../support.js';
import { ROOT } from '../transformers/family-cases.js';

const pixels = (...dims: number[]) => {
  const size = dims.reduce((product, extent) => product * extent, 1);
  return { data: normal(7, size), dims };
};
const integers = (...rows: number[][]) => ({
  data: BigInt64Array.from(rows.flat(), BigInt),
  dims: [rows.length, rows[0].length],
});

/** Several images, tiles of two sizes, windows, a video of two frames. */
const INPUTS: Readonly<Record<string, VisionInputs>> = {
  paligemma: { pixelValues: pixels(2, 3, 32, 32) },
  gemma3: { pixelValues: pixels(2, 3, 32, 32) },
  llava_onevision: { pixelValues: pixels(2, 3, 48, 48) },
  idefics3: { pixelValues: pixels(1, 3, 3, 32, 32) },
  lfm2_vl: { pixelValues: pixels(2, 36, 48), spatialShapes: integers([4, 6], [6, 6]) },
  qwen2_vl: { pixelValues: pixels(48, 96), imageGridThw: integers([2, 4, 6]) },
  qwen2_5_vl: { pixelValues: pixels(96, 96), imageGridThw: integers([1, 8, 12]) },
};

const open = (family: string, tower?: TowerOptions) =>
  openVisionModel(join(ROOT, family), { keep: 3, ...(tower && { tower }) });

describe.each(Object.keys(INPUTS))('%s', (family) => {
  const inputs = INPUTS[family];

  it('computes what a model without the option computes where nothing is dropped', async () => {
    await using plain = await open(family);
    await using cut = await open(family, { at: 1, keep: 10_000 });
    const [wanted, got] = [await plain.encode(inputs), await cut.encode(inputs)];
    for (const [i, image] of got.entries()) {
      const { timings: _, ...one } = await image.prune('what is it', { maps: true });
      const { timings: __, ...other } = await wanted[i].prune('what is it', { maps: true });
      expect(one.dropped).toBeUndefined();
      expect(one).toEqual(other);
      expect(await image.all()).toEqual(await wanted[i].all());
    }
  });

  it('keeps none of the dropped, gives them to kept ones, and has all tokens still', async () => {
    await using plain = await open(family);
    await using cut = await open(family, { at: 1, keep: 0.5 });
    const [wanted, images] = [await plain.encode(inputs), await cut.encode(inputs)];
    for (const [i, image] of images.entries()) {
      const pruned = await image.prune('what is it', { maps: true });
      const dropped = pruned.dropped as Int32Array;
      expect(dropped.length).toBe(image.tokenCount - Math.round(image.tokenCount / 2));
      expect([...dropped]).toEqual([...new Set(dropped)].sort((a, b) => a - b));
      const gone = new Set(dropped);
      expect([...pruned.indices].some((place) => gone.has(place))).toBe(false);
      expect(pruned.assignment.every((k) => k >= 0 && k < pruned.indices.length)).toBe(true);
      const counts = pruned.indices.map(
        (_, k) => pruned.assignment.filter((to, place) => to === k && !gone.has(place)).length,
      );
      expect([...pruned.counts]).toEqual([...counts]);
      expect([...dropped].every((place) => pruned.maps?.task?.[place] === 0 && pruned.maps.saliency[place] === 0)).toBe(
        true,
      );
      expect(pruned.features.data.every(Number.isFinite)).toBe(true);

      const alone = await image.prune(null, { taskShare: 0, merge: false });
      expect([...dropped].every((place) => alone.assignment[place] === -1)).toBe(true);
      const method = await image.prune(null, { method: 'divprune' });
      expect(method.dropped).toEqual(dropped);
      expect([...method.indices].some((place) => gone.has(place))).toBe(false);
      const everything = (await image.all()).data as Float32Array;
      expect(relativeError(everything, (await wanted[i].all()).data as Float32Array)).toBeLessThan(1e-6);
    }
  });
});

describe('tokens that stay', () => {
  it('have the features that the file makes of their rows alone, by its own last block', async () => {
    // In q8 the file runs its last block; in float32 the kernels do. Both are one model.
    const config = JSON.parse(await readFile(join(ROOT, 'idefics3/config.json'), 'utf8'));
    const options = { model: join(ROOT, 'idefics3'), config, tower: { at: 1, keep: 8, by: 'random' } as const };
    const features: Float32Array[] = [];
    for (const file of [
      'idefics3/onnx/vision_encoder.onnx',
      'forms/idefics3.q8.onnx',
      'forms/idefics3.extended.onnx',
    ]) {
      await using vision = await BlockVision.openAs(IDEFICS3, join(ROOT, file), options);
      const [image] = await vision.encode(INPUTS.idefics3);
      const pruned = await image.prune(null, { taskShare: 0, keep: 8, merge: false });
      expect(pruned.dropped?.length).toBe(24);
      features.push(pruned.features.data as Float32Array);
    }
    expect(relativeError(features[1], features[0])).toBeLessThan(0.1);
    expect(relativeError(features[2], features[0])).toBeLessThan(1e-4);
  });
});

describe('what is refused', () => {
  it.each([
    [{ at: 2, keep: 0.5 }, 'ERR_VALUE', 'tower.at: got 2, wanted'],
    [
      { at: 1, keep: 0.5, by: 'class-token' },
      'ERR_VALUE',
      "tower.by: got 'class-token' of an encoder without class token",
    ],
    [{ at: 1, keep: 0 }, 'ERR_VALUE', 'tower.keep'],
  ] as const)('%o', async (tower, code, message) => {
    await expect(open('idefics3', tower)).rejects.toMatchObject({ code, message: expect.stringContaining(message) });
  });
  it('a file whose features have columns of earlier blocks', async () => {
    await expect(open('qwen3_vl_packed', { at: 1, keep: 0.5 })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringContaining('columns of earlier blocks'),
    });
  });
});
