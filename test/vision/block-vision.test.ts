/** Encoders with a last block of their own over plain onnxruntime-node: maps in float64, runs, and what they are fed. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openVisionModel, type VisionInputs, type VisionModel } from '../../src/vision/index.js';
import { normal, relativeError } from '../support.js';
import { ROOT } from '../transformers/family-cases.js';

/** Maps in float64 by `flat_maps.py`, which knows SPEC and nothing of this package. */
interface Maps {
  readonly question: string;
  readonly pixels: number[];
  readonly images: { readonly task: number[]; readonly saliency: number[] }[];
}

const pixels = (dims: number[], value: (i: number) => number) => ({
  data: Float32Array.from({ length: dims.reduce((size, extent) => size * extent, 1) }, (_, i) => value(i)),
  dims,
});

describe.each(['paligemma', 'gemma3', 'llava_onevision'])('%s', (family) => {
  it('has the maps of eq. 3 and eq. 4 in float64, for each image of a call', async () => {
    const folder = join(ROOT, family);
    const maps = JSON.parse(await readFile(join(folder, 'maps.json'), 'utf8')) as Maps;
    await using vision = await openVisionModel(folder, { keepRatio: 0.25 });
    const images = await vision.encode({ pixelValues: pixels(maps.pixels, (i) => Math.sin(i * i)) });
    for (const [i, { task, saliency }] of maps.images.entries()) {
      const kept = await images[i].prune(maps.question, { maps: true });
      expect(relativeError(kept.maps!.task!, task)).toBeLessThan(1e-4);
      expect(relativeError(kept.maps!.saliency, saliency)).toBeLessThan(1e-4);
      // The saliency map is the same without a question.
      const salient = await images[i].prune(null, { taskShare: 0, maps: true });
      expect(relativeError(salient.maps!.saliency, saliency)).toBeLessThan(1e-4);
      images[i].dispose();
    }
  });
});

/** onnxruntime-node with a record of its runs: the extents of their first inputs. */
function recording(refuse: (dims: readonly number[]) => boolean = () => false) {
  const runs: string[] = [];
  const create = async (...given: Parameters<typeof ort.InferenceSession.create>) => {
    const session = await ort.InferenceSession.create(...given);
    const run = session.run.bind(session) as (...all: unknown[]) => Promise<never>;
    session.run = async (feeds: Record<string, ort.Tensor>, ...more: unknown[]) => {
      const [{ dims }] = Object.values(feeds);
      runs.push(`${session.inputNames[0]} ${dims.join('x')}`);
      if (refuse(dims)) throw new Error('a Reshape that knows one image only');
      return run(feeds, ...more);
    };
    return session;
  };
  return { runs, ort: { ...ort, InferenceSession: { create } } as unknown as typeof ort };
}

describe('runs', () => {
  const folder = join(ROOT, 'paligemma');
  const images = (count: number): VisionInputs => ({
    pixelValues: { data: normal(7, count * 3 * 32 * 32), dims: [count, 3, 32, 32] },
  });

  it('encodes several images at once, and sees the last block and the connector once for all questions', async () => {
    const { runs, ort } = recording();
    await using vision = await openVisionModel(folder, { ort, keep: 4 });
    const warm = await vision.encode(images(2));
    runs.length = 0;
    const encoded = await vision.encode(images(3));
    // The tower, the rest of its last block, the connector.
    expect(runs).toEqual(['pixel_values 3x3x32x32', 'desap.attention 1x192x32', 'desap.rows 3x64x32']);
    runs.length = 0;
    for (const one of encoded) await one.prune(null, { taskShare: 0 });
    expect(runs).toEqual([]);
    const questions = ['what?', 'where is the red one?'];
    for (const one of encoded) for (const question of questions) await one.prune(question);
    expect(runs.filter((run) => run.startsWith('desap.rows'))).toEqual(['desap.rows 3x64x32']);
    await Promise.all(encoded.map((one) => one.prune('again?', { keep: 9 })));
    expect(runs.filter((run) => run.startsWith('desap.rows'))).toHaveLength(1);
    for (const one of [...warm, ...encoded]) one.dispose();
  });

  it('encodes one by one where the file takes no more, with the same sets', async () => {
    const kept: number[][][] = [];
    for (const isRefused of [false, true]) {
      const { runs, ort } = recording((dims) => isRefused && dims.length === 4 && dims[0] > 1);
      await using vision = await openVisionModel(folder, { ort, keep: 6 });
      await vision.encode(images(2));
      runs.length = 0;
      const encoded = await vision.encode(images(3));
      expect(runs.filter((run) => run.startsWith('pixel_values'))).toHaveLength(isRefused ? 3 : 1);
      const some = await Promise.all(encoded.map((one) => one.prune('what is it?')));
      kept.push(some.map(({ indices }) => [...indices]));
    }
    expect(kept[1]).toEqual(kept[0]);
  });

  it('has no more than 1024 patches in a run on a processor', async () => {
    const { runs, ort } = recording();
    await using vision = await openVisionModel(folder, { ort, keep: 4 });
    const encoded = await vision.encode(images(70));
    expect(runs.filter((run) => /pixel_values (16|6)x/.test(run))).toEqual([
      ...new Array(4).fill('pixel_values 16x3x32x32'),
      'pixel_values 6x3x32x32',
    ]);
    const [alone] = await vision.encode({
      pixelValues: { data: (images(70).pixelValues!.data as Float32Array).slice(-3 * 32 * 32), dims: [1, 3, 32, 32] },
    });
    expect((await encoded[69].prune('what?')).indices).toEqual((await alone.prune('what?')).indices);
  });
});

describe('what a model is told', () => {
  let vision: VisionModel;
  beforeAll(async () => {
    vision = await openVisionModel(join(ROOT, 'gemma3'), { keep: 4 });
  });
  afterAll(() => vision.dispose());
  const one = { pixelValues: pixels([1, 3, 32, 32], (i) => Math.cos(i * i)) };

  it('takes a question of one row by the mean, where eq. 3 would square the cosine', async () => {
    const [image] = await vision.encode(one);
    const { embeddings } = await vision.encodeQuestion('what is it?');
    const [, width] = embeddings.dims;
    const row = { embeddings: { data: (embeddings.data as Float32Array).slice(0, width), dims: [1, width] } };
    const maps = async (how: object) => (await image.prune(row, { maps: true, ...how })).maps!.task;
    expect(await maps({})).toEqual(await maps({ alignment: 'mean' }));
    expect(await maps({ alignment: 'fcma' })).not.toEqual(await maps({}));
    // Several rows are matched as the paper has it.
    const several = async (how: object) => (await image.prune({ embeddings }, { maps: true, ...how })).maps!.task;
    expect(await several({})).toEqual(await several({ alignment: 'fcma' }));
    image.dispose();
  });

  it('takes a saliency map of the caller’s', async () => {
    const [image] = await vision.encode(one);
    const saliency = new Float32Array(16);
    for (const place of [2, 3, 5, 7]) saliency[place] = 1;
    const { indices } = await image.prune(null, { taskShare: 0, saliency });
    expect([...indices]).toEqual([2, 3, 5, 7]);
    await expect(image.prune(null, { taskShare: 0, saliency: new Float32Array(15) })).rejects.toMatchObject({
      code: 'ERR_SHAPE',
      message: 'saliency: got 15 elements, wanted 16 elements',
    });
    image.dispose();
  });

  it('takes another encoding', async () => {
    const task: (Float32Array | null)[] = [];
    for (const encoding of ['qq', 'kk', 'vv', 'qk'] as const) {
      await using other = await openVisionModel(join(ROOT, 'gemma3'), { keep: 4, encoding });
      const [image] = await other.encode(one);
      task.push((await image.prune('what is it?', { maps: true })).maps!.task);
    }
    expect(new Set(task.map((map) => map!.join())).size).toBe(4);
  });

  it.each<[string, VisionInputs, string, RegExp]>([
    ['nothing', {}, 'ERR_DTYPE', /^pixelValues: got undefined/],
    [
      'another rank',
      { pixelValues: pixels([3, 32, 32], () => 0) },
      'ERR_SHAPE',
      /^pixelValues.dims: got \[3, 32, 32\]/,
    ],
    ['gray images', { pixelValues: pixels([2, 1, 32, 32], () => 0) }, 'ERR_SHAPE', /wanted \[images, 3, H, W\]/],
    ['no images', { pixelValues: pixels([0, 3, 32, 32], () => 0) }, 'ERR_SHAPE', /wanted \[images, 3, H, W\]/],
    [
      'another size',
      { pixelValues: pixels([1, 3, 16, 16], () => 0) },
      'ERR_SHAPE',
      /^pixelValues: got float32 \[1, 3, 16/,
    ],
    [
      'one pixel',
      { pixelValues: pixels([1, 3, 1, 1], () => 0) },
      'ERR_SHAPE',
      /^pixelValues: got float32 \[1, 3, 1, 1\]/,
    ],
    [
      'what another family takes',
      { ...one, imageGridThw: { data: new BigInt64Array(3), dims: [1, 3] } },
      'ERR_VALUE',
      /^inputs: got the unknown option 'imageGridThw', wanted one of pixelValues/,
    ],
  ])('refuses %s', async (_, inputs, code, message) => {
    await expect(vision.encode(inputs)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });

  it('refuses embeddings of another width, and more tokens than there are', async () => {
    const [image] = await vision.encode(one);
    const wide = { embeddings: { data: new Float32Array(2 * 40).fill(1), dims: [2, 40] } };
    await expect(image.prune(wide)).rejects.toMatchObject({ code: 'ERR_SHAPE', message: /^question: got 40 columns/ });
    await expect(image.prune('what?', { keep: 17 })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/^keep: got 17, wanted a count from 1 to 16/),
    });
    await expect(image.prune('what?', { allocation: 'x' as never })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: "allocation: got 'x', wanted 'tile' | 'image'",
    });
    image.dispose();
  });
});
