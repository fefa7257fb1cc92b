/** Methods on vision models: taps out of the tower, tiles, other families, and every refusal. */
import { setTimeout } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { Pruner } from '../../src/index.js';
import { chooserOf, METHOD_NAMES, tapsOf } from '../../src/methods/index.js';
import { TAPS } from '../../src/methods/method.js';
import { extractHead, readTower } from '../../src/onnx/index.js';
import { Tensor } from '../../src/tensor.js';
import type { ClipEncoder } from '../../src/vision/clip-encoder.js';
import {
  AnyresImageProcessor,
  compact,
  ImageProcessor,
  LlavaVision,
  openVisionModel,
  VideoLlavaVision,
} from '../../src/vision/index.js';
import type { EncodedImage, VisionModel, VisionPruneOptions } from '../../src/vision/vision-model.js';
import { normal } from '../support.js';
import { imageOf } from '../transformers/family-cases.js';

const ENCODER = 'models/tiny-llava/onnx/vision_encoder.onnx';
const CLIP = 'models/tiny-clip';
const QUESTION = 'what color is the star ?';
const NEXT = 'test/fixtures/families/llava_next';
const RIVALS = METHOD_NAMES.filter((name) => name !== 'desap');

let vision: LlavaVision;
let pixels: Tensor[];
beforeAll(async () => {
  vision = await LlavaVision.open(ENCODER, { clip: CLIP, taps: TAPS });
  const images = await ImageProcessor.open('models/tiny-llava');
  pixels = await Promise.all(['02', '03'].map((name) => images.process(`models/eval/demo/${name}.png`)));
});
afterAll(() => vision.dispose());

describe('LlavaVision', () => {
  it.each(RIVALS)('keeps 16 tokens by %s', async (method) => {
    const { features, indices, assignment, counts, timings, tileCounts, task, maps } = await vision.prune(
      pixels[0],
      QUESTION,
      { method, keep: 16 },
    );
    expect(features.dims).toEqual([1, 16, 128]);
    expect([indices.length, counts.length, assignment.length, ...tileCounts]).toEqual([16, 16, 144, 16]);
    expect([...indices]).toEqual([...indices].sort((a, b) => a - b));
    expect(maps).toBeUndefined();
    expect(task).toEqual(method === 'cdpruner' || method === 'trim' ? { form: 'clip' } : null);
    for (const part of ['vision', 'prune', 'projector'] as const) expect(timings[part]).toBeGreaterThan(0);
    const { select, merge } = timings.stages;
    expect(select + merge).toBeCloseTo(timings.prune, 9);
    // What is computed of blocks, and of which methods merge what they do not keep.
    expect(timings.analyze > 0).toBe(chooserOf(method).taps.length > 0);
    expect(merge > 0).toBe(['visionzip', 'prumerge', 'vscan', 'tome'].includes(method));
  });

  it.each<[string, VisionPruneOptions]>([
    ['divprune', { method: 'divprune' }],
    ['distances of projected rows', { preset: 'best', distances: 'projected' }],
  ])("counts the features of all patches as the connector's time, for each question: %s", async (_, how) => {
    const [image] = await vision.encode(pixels[0]);
    using _image = image;
    const { encoder } = vision as unknown as { encoder: ClipEncoder };
    const project = encoder.project.bind(encoder);
    const slow = vi.spyOn(encoder, 'project').mockImplementation(async (rows) => {
      if (rows.dims?.[0] === 144) await setTimeout(100);
      return project(rows);
    });
    for (let question = 0; question < 2; question++) {
      const { timings } = await image.prune(QUESTION, { ...how, keep: 9 });
      expect(timings.projector).toBeGreaterThan(90);
      expect(timings.prune).toBeLessThan(90);
    }
    slow.mockRestore();
  });

  it('hands on the rows of patches that are only selected', async () => {
    const [image] = await vision.encode(pixels[0]);
    using _ = image;
    const all = (await image.all()).data as Float32Array;
    const { features, indices } = await image.prune(null, { method: 'divprune', keep: 9 });
    indices.forEach((patch, k) => {
      const got = (features.data as Float32Array).subarray(k * 128, (k + 1) * 128);
      all.subarray(patch * 128, (patch + 1) * 128).forEach((value, c) => {
        expect(got[c]).toBeCloseTo(value, 4);
      });
    });
  });

  it('gives the tokens of vscan behind the projector: means of features', async () => {
    const [image] = await vision.encode(pixels[0]);
    using _ = image;
    const all = (await image.all()).data as Float32Array;
    const { features, assignment, counts } = await image.prune(null, { method: 'vscan', keep: 20 });
    const mean = new Float64Array(128);
    assignment.forEach((k, patch) => {
      if (k === 3) for (let c = 0; c < 128; c++) mean[c] += all[patch * 128 + c] / counts[3];
    });
    const got = (features.data as Float32Array).subarray(3 * 128, 4 * 128);
    mean.forEach((value, c) => {
      expect(got[c]).toBeCloseTo(value, 4);
    });
  });

  it('taps the last block: its class attention is the saliency', async () => {
    const own = await vision.prune(pixels[0], null, { keep: 16, taskShare: 0, merge: false });
    const options: VisionPruneOptions = { method: 'fastervlm', methodOptions: { tap: 'last' }, keep: 16 };
    const tapped = await vision.prune(pixels[0], null, options);
    expect(tapped.indices).toEqual(own.indices);
    expect(tapped.features.data).toEqual(own.features.data);
  });

  it('has the same taps of an image alone and among others, in the first run and later', async () => {
    const options: VisionPruneOptions = { method: 'flowcut', methodOptions: { taps: TAPS }, keep: 16 };
    const fresh = await LlavaVision.open(ENCODER, { clip: CLIP, taps: ['first', 'local', 'penultimate'] });
    const alone = [];
    for (const image of pixels) alone.push(await fresh.prune(image, null, options));
    const both = new Float32Array([...pixels.flatMap(({ data }) => [...(data as Float32Array)])]);
    const images = await fresh.encode(new Tensor('float32', both, [2, 3, 96, 96]));
    const together = await fresh.pruneImages(images, [null, null], [options, options]);
    for (const [i, { indices }] of together.entries()) expect(indices).toEqual(alone[i].indices);
    expect(together[0].indices).not.toEqual(together[1].indices);
    for (const image of images) image.dispose();
    await fresh.dispose();
  });

  it('prunes as before where it taps nothing, to the bit', async () => {
    const plain = await LlavaVision.open(ENCODER, { clip: CLIP });
    for (let run = 0; run < 2; run++) {
      const [a, b] = await Promise.all([plain, vision].map((one) => one.prune(pixels[0], QUESTION, { keep: 16 })));
      expect(a.features.data).toEqual(b.features.data);
    }
    await plain.dispose();
  });

  it('prunes one image by one method and another by another', async () => {
    const images = (await Promise.all(pixels.map((image) => vision.encode(image)))).flat();
    const options: VisionPruneOptions[] = [{ keep: 8 }, { keep: 9, method: 'uniform' }];
    const kept = await vision.pruneImages(images, [QUESTION, null], options);
    expect(kept.map(({ indices }) => indices.length)).toEqual([8, 9]);
    expect(kept[0].indices).toEqual((await images[0].prune(QUESTION, { keep: 8, method: 'desap' })).indices);
    for (const image of images) image.dispose();
  });

  it('takes the amount that it was opened with, and none where the method says it', async () => {
    const small = await LlavaVision.open(ENCODER, { clip: CLIP, keep: 5 });
    expect((await small.prune(pixels[0], null, { method: 'uniform' })).indices).toHaveLength(5);
    const { indices } = await small.prune(pixels[0], QUESTION, { method: 'trim', methodOptions: { adaptive: true } });
    expect(indices.length).not.toBe(5);
    await small.dispose();
  });

  it('cdpruner is as relevant as the task map with relevance: decoupled', async () => {
    const methodOptions = { relevance: 'decoupled' };
    const { indices } = await vision.prune(pixels[0], QUESTION, { method: 'trim', methodOptions, keep: 2 });
    const { maps } = await vision.prune(pixels[0], QUESTION, { keep: 2, alignment: 'mean', maps: true });
    expect(indices).toContain(maps!.task!.indexOf(Math.max(...maps!.task!)));
  });

  it.each<[string, VisionPruneOptions, RegExp, unknown?]>([
    ['an unknown method', { method: 'fastv' as never }, /^method: got 'fastv', wanted 'desap' \| 'random'/],
    [
      'an option that it does not have',
      { method: 'vscan', methodOptions: { runs: 3 } },
      /^methodOptions: got the unknown option 'runs'/,
    ],
    ['a bad value', { method: 'holov', methodOptions: { runs: 0 } }, /^runs: got 0, wanted an integer from 1/],
    ['options of no method', { methodOptions: {} }, /^methodOptions: got options of no method/],
    ['options of desap', { method: 'desap', methodOptions: { seed: 1 } }, /^methodOptions: got options of no method/],
    [
      'a share of the task',
      { method: 'random', taskShare: 0.5 },
      /^taskShare: got 0.5 beside method: 'random', wanted none/,
    ],
    ['a preset', { method: 'random', preset: 'best' }, /^preset: got 'best' beside method: 'random', wanted none/],
    [
      'a layout of desap',
      { layout: 'raster' },
      /^layout: got 'raster' of no method, wanted the option method beside it/,
    ],
    ['a layout that is none', { method: 'random', layout: 'code' as never }, /^layout: got 'code', wanted 'raster'/],
    ['taps of the call', { method: 'random', taps: {} } as never, /^options: got the unknown option 'taps'/],
    ['maps', { method: 'random', maps: true }, /^maps: got true beside method/],
    ['a saliency map', { method: 'random', saliency: new Float32Array(144) }, /^saliency: got Float32Array beside/],
    ['too many tokens', { method: 'uniform', keep: 145 }, /^keep: got 145, wanted a count from 1 to 144/],
    [
      'a budget of an adaptive method',
      { method: 'trim', methodOptions: { adaptive: true }, keep: 3 },
      /^keep: got 3 beside method/,
    ],
    ['an allocation that is none', { method: 'uniform', allocation: 'row' as never }, /^allocation: got 'row'/],
    ['no question where one is read', { method: 'cdpruner' }, /^question: got null/, null],
    [
      'a question that is not finite',
      { method: 'trim' },
      /^question: got NaN/,
      { embeddings: new Tensor('float32', new Float32Array(256).fill(Number.NaN), [2, 128]) },
    ],
    [
      'a question of another width',
      { method: 'trim' },
      /^question: got rows of 3 elements, wanted/,
      { embeddings: new Tensor('float32', normal(1, 6), [2, 3]) },
    ],
  ])('refuses %s', async (_, options, message, question = QUESTION) => {
    const given = options.keep === undefined && !options.methodOptions ? { keep: 4, ...options } : options;
    const budget = 'adaptive' in (options.methodOptions ?? {}) || given.keep ? given : { keep: 4, ...given };
    await expect(vision.prune(pixels[0], question as string, budget)).rejects.toMatchObject({
      name: 'DesapError',
      message: expect.stringMatching(message),
    });
  });

  it('refuses an image that is not finite', async () => {
    const nan = new Tensor('float32', new Float32Array(3 * 96 * 96).fill(Number.NaN), [1, 3, 96, 96]);
    for (const method of ['random', 'fastervlm', 'divprune', 'dart'] as const)
      await expect(vision.prune(nan, QUESTION, { method, keep: 4 })).rejects.toMatchObject({
        code: 'ERR_NOT_FINITE',
        message: expect.stringMatching(/^image: it is not finite behind the encoder/),
      });
  });

  it('says how a method chose', async () => {
    const of = async (method: VisionPruneOptions['method']) =>
      await vision.prune(pixels[0], null, { method, keep: 16 });
    const divprune = await of('divprune');
    expect(Int32Array.from(divprune.choice!.picked!).sort()).toEqual(divprune.indices);
    expect([...divprune.choice!.order]).toEqual([...divprune.indices.keys()]);
    const { budget, scores } = (await of('holov')).choice!;
    expect([budget!.length, budget!.reduce((sum, count) => sum + count)]).toEqual([16, 16]);
    expect([scores.saliency.length, scores.runScore.length]).toEqual([144, 16]);
    expect((await vision.prune(pixels[0], QUESTION, { keep: 16 })).choice).toBeUndefined();
  });

  it("gives the same features in the published code's order", async () => {
    const options: VisionPruneOptions = { method: 'visionzip', keep: 16 };
    const raster = await vision.prune(pixels[0], null, options);
    const inOrder = await vision.prune(pixels[0], null, { ...options, layout: 'public' });
    const { order } = raster.choice!;
    expect([...order]).not.toEqual([...order.keys()]);
    expect(inOrder.indices).toEqual(order.map((k) => raster.indices[k]));
    expect(inOrder.assignment.map((k) => (k < 0 ? k : inOrder.indices[k]))).toEqual(
      raster.assignment.map((k) => (k < 0 ? k : raster.indices[k])),
    );
    const row = ({ features }: typeof raster, k: number) =>
      (features.data as Float32Array).subarray(k * 128, (k + 1) * 128);
    order.forEach((k, position) => {
      expect(row(inOrder, position)).toEqual(row(raster, k));
    });

    const prompt = { inputIds: [1, ...new Array(144).fill(7), 2], imageTokenId: 7 };
    const [one, two] = [compact({ ...prompt, kept: inOrder }), compact({ ...prompt, kept: raster })];
    expect(one.positionIds.data).toEqual(two.positionIds.data);
    const placed = { ...prompt, kept: [inOrder] };
    expect(() => compact({ ...placed, positions: 'original' })).toThrow(
      /^kept\[0\]: got tokens in the order of layout: 'public', wanted layout: 'raster', or positions: 'compact'/,
    );
    const positionIds = new Tensor(
      'int64',
      BigInt64Array.from({ length: 146 }, (_, i) => BigInt(i)),
      [1, 146],
    );
    expect(() => compact({ ...placed, positionIds })).toThrow(/^kept\[0\]: got tokens in the order/);
    compact({ ...prompt, kept: raster, positions: 'original' });
  });

  it('has no maps of other methods', async () => {
    const [image] = await vision.encode(pixels[0]);
    using _ = image;
    await expect(vision.mapImages([image], [QUESTION], [{ method: 'trim' }])).rejects.toThrow(
      /^method: got 'trim', wanted 'desap'/,
    );
  });

  it('names the tap that a model was not opened with', async () => {
    const plain = await LlavaVision.open(ENCODER, { clip: CLIP, taps: ['penultimate'] });
    for (const method of RIVALS) {
      const missing = tapsOf(method).find((tap) => tap === 'local');
      const pruned = plain.prune(pixels[0], QUESTION, { method, keep: 4 });
      if (missing === undefined) await expect(pruned).resolves.toMatchObject({ counts: expect.anything() });
      else
        await expect(pruned).rejects.toThrow(
          "method: got one that reads the tap 'local', wanted a model that is opened with taps: ['local'], or another method",
        );
    }
    await plain.dispose();
  });

  it('says what a pruner of the caller cannot give', async () => {
    const own = await Pruner.load(await extractHead({ visionModel: `${CLIP}/onnx/vision_model.onnx` }), {
      device: 'cpu',
    });
    const opened = await LlavaVision.open(ENCODER, { pruner: own, taps: ['penultimate'] });
    const prune = (method: VisionPruneOptions['method']) => opened.prune(pixels[0], null, { method, keep: 4 });
    expect((await prune('visionzip')).indices).toHaveLength(4);
    await expect(prune('prumerge')).rejects.toThrow(
      /^method: got one that reads the head's weights, wanted a pruner that is loaded from the path of a head file/,
    );
    await opened.dispose();
    own.dispose();
  });

  it.each([
    ['a name that is none', ['last', 'middle'], /^taps: got \['last', 'middle'\], wanted a list of 'first'/],
    ['no list', 'first', /^taps: got 'first', wanted a list/],
  ])('refuses %s for taps', async (_, taps, message) => {
    await expect(LlavaVision.open(ENCODER, { clip: CLIP, taps: taps as never })).rejects.toThrow(message);
  });
});

it('graphs hand out what enters a block, and refuse one that they lack', async () => {
  const { towerGraph } = await import('../../src/onnx/index.js');
  const tower = readTower(ENCODER);
  expect(towerGraph(tower, [0, 2]).outputs).toEqual([
    'desap.hidden_states',
    'desap.entering_block_0',
    'desap.entering_block_2',
  ]);
  expect(() => towerGraph(tower, [3])).toThrow(/^tapped: got 3, wanted an integer from 0 to 2/);
});

describe('tiles', () => {
  let next: VisionModel;
  let image: EncodedImage;
  beforeAll(async () => {
    next = await openVisionModel(NEXT, { clip: `${NEXT}/clip`, taps: TAPS });
    const images = await AnyresImageProcessor.open(NEXT);
    [image] = await next.encode(await images.process(imageOf([1, 56, 40])));
  });
  afterAll(async () => {
    image.dispose();
    await next.dispose();
  });

  it.each(RIVALS.filter((method) => method !== 'hired'))('%s keeps as many of each', async (method) => {
    const text = await next.encodeQuestion('what is it?');
    const { indices, source, tileCounts, features } = await image.prune(text, { method, keep: 3 });
    expect([...tileCounts]).toEqual(image.tiles.map(() => 3));
    expect(features.dims[1]).toBe(indices.length);
    expect(indices.length).toBeGreaterThan(3 * image.tiles.length); // newlines
    expect(source).toHaveLength(indices.length);
  });

  it('hired shares one K', async () => {
    const counts = async (options: VisionPruneOptions) => [
      ...(await image.prune(null, { method: 'hired', ...options })).tileCounts,
    ];
    const each = await counts({ keep: 3 });
    expect(each.reduce((sum, count) => sum + count)).toBe(3 * image.tiles.length);
    expect(new Set(each).size).toBeGreaterThan(1);
    expect((await counts({ keep: 7, allocation: 'image' })).reduce((sum, count) => sum + count)).toBe(7);
  });

  it('says how they were chosen, one tile after the other, in the tokens of the image', async () => {
    const options = { method: 'divprune', keep: 3 } as const;
    const { indices, source, choice, tileCounts, assignment } = await image.prune(null, options);
    const units = indices.filter((_, k) => source[k] !== 2);
    expect(Int32Array.from(choice!.picked!).sort()).toEqual(units);
    expect([...choice!.order].sort((a, b) => a - b)).toEqual([...indices.keys()]);
    const fed = choice!.order.filter((k) => source[k] !== 2).map((k) => indices[k]);
    for (let at = 0; at < units.length; at += 3)
      expect(fed.slice(at, at + 3)).toEqual(choice!.picked!.slice(at, at + 3).sort());

    const inOrder = await image.prune(null, { ...options, layout: 'public' });
    inOrder.source.forEach((which, k) => {
      expect(which === 2).toBe(source[k] === 2);
      if (which === 2) expect(inOrder.indices[k]).toBe(indices[k]);
    });
    expect(inOrder.tileCounts).toEqual(tileCounts);
    expect(inOrder.assignment.map((k) => (k < 0 ? k : inOrder.indices[k]))).toEqual(
      assignment.map((k) => (k < 0 ? k : indices[k])),
    );
    const hired = await image.prune(null, { method: 'hired', keep: 3 });
    expect(hired.choice!.budget).toEqual(hired.tileCounts);
    expect(Object.keys(hired.choice!.scores).sort()).toEqual(['allocation', 'saliency']);
  });

  it('of one K for the whole image only hired is asked', async () => {
    await expect(image.prune(null, { method: 'uniform', keep: 9, allocation: 'image' })).rejects.toThrow(
      /^allocation: got 'image' for \d tiles, wanted 'tile': this method runs on each by itself/,
    );
  });

  it('hired names the tap of tiles', async () => {
    const other = await openVisionModel(NEXT, { clip: `${NEXT}/clip`, taps: ['penultimate'] });
    const images = await AnyresImageProcessor.open(NEXT);
    const [own] = await other.encode(await images.process(imageOf([1, 56, 40])));
    await expect(own.prune(null, { method: 'hired', keep: 3 })).rejects.toThrow(/reads the tap 'first'/);
    own.dispose();
    await other.dispose();
  });
});

describe('encoders that are no tower of CLIP', () => {
  const inputs = {
    pixelValues: { data: normal(3, 24 * 96), dims: [24, 96] },
    imageGridThw: { data: BigInt64Array.from([1n, 4n, 6n]), dims: [1, 3] },
  };

  it.each(['random', 'uniform', 'divprune', 'dart', 'cdpruner', 'trim'] as const)(
    '%s needs features only',
    async (method) => {
      const qwen = await openVisionModel('test/fixtures/families/qwen2_5_vl');
      const methodOptions = method === 'cdpruner' || method === 'trim' ? { relevance: 'decoupled' } : undefined;
      const [{ tiles, tokenCount }] = await qwen.encode(inputs);
      expect(tiles).toEqual([{ frame: 0, rows: 2, columns: 3 }]);
      const { features, indices, task } = await qwen.prune(inputs, 'what is it?', { method, methodOptions, keep: 4 });
      expect([features.dims[1], indices.length, tokenCount]).toEqual([4, 4, 6]);
      expect(task).toEqual(methodOptions ? { form: 'llm' } : null);
      await qwen.dispose();
    },
  );

  it.each([
    ['fastervlm', "reads the tap 'penultimate'"],
    ['prumerge', "reads the tap 'last'"],
    ['vscan', "reads the tap 'local'"],
    ['cdpruner', "reads CLIP's read-out"],
  ] as const)('refuses %s by what it reads', async (method, what) => {
    const qwen = await openVisionModel('test/fixtures/families/qwen2_5_vl');
    await expect(qwen.prune(inputs, 'what is it?', { method, keep: 4 })).rejects.toThrow(
      `method: got one that ${what}, wanted a method that reads features only: this encoder is no tower of CLIP`,
    );
    await expect(openVisionModel('test/fixtures/families/qwen2_5_vl', { taps: ['last'] })).rejects.toThrow(
      /^options: got the unknown option 'taps'/,
    );
    await qwen.dispose();
  });
});

describe('frames of a video', () => {
  const VIDEO = 'test/fixtures/families/video_llava';

  it('are pruned one by one', async () => {
    const video = await openVisionModel(VIDEO, { clip: `${VIDEO}/clip`, taps: ['penultimate'] });
    const [, , side] = (video as never as { encoder: { extents(): number[] } }).encoder.extents();
    const pixelValuesVideos = { data: normal(5, 2 * 3 * side * side), dims: [1, 2, 3, side, side] };
    for (const method of ['visionzip', 'hired'] as const) {
      const { tileCounts } = await video.prune({ pixelValuesVideos }, null, { method, keep: 3 });
      expect([...tileCounts]).toEqual([3, 3]);
    }
    await video.dispose();
  });

  it('cannot be tapped where blocks look at other frames in between', async () => {
    const TEMPORAL = 'test/fixtures/families/video_llava_temporal';
    const options = { clip: `${TEMPORAL}/clip`, kind: 'video-llava' } as const;
    const file = `${TEMPORAL}/onnx/vision_encoder.onnx`;
    await expect(VideoLlavaVision.open(file, { ...options, taps: ['first'] })).rejects.toThrow(
      /^taps: got \['first'\], wanted none with kind: 'video-llava'/,
    );
    const video = await VideoLlavaVision.open(file, options);
    const pixelValuesVideos = { data: normal(5, 8 * 3 * 32 * 32), dims: [1, 8, 3, 32, 32] };
    const prune = (method: VisionPruneOptions['method']) =>
      video.prune({ pixelValuesVideos }, null, { method, keep: 3 });
    expect((await prune('divprune')).tileCounts).toEqual(new Int32Array(8).fill(3));
    await expect(prune('prumerge')).rejects.toThrow(
      /reads the tap 'last', wanted another method: the blocks of this tower/,
    );
    await video.dispose();
  });
});

it('Phi-3.5-vision has no taps', async () => {
  const PHI3 = 'test/fixtures/families/phi3_v';
  const clip = { clip: `${PHI3}/clip` };
  await expect(openVisionModel(PHI3, { ...clip, taps: ['first'] })).rejects.toThrow(/unknown option 'taps'/);
  const phi3 = await openVisionModel(PHI3, clip);
  const inputs = {
    pixelValues: { data: normal(3, 2 * 3 * 32 * 32), dims: [1, 2, 3, 32, 32] },
    imageSizes: { data: BigInt64Array.from([32n, 32n]), dims: [1, 2] },
  };
  expect([...(await phi3.prune(inputs, null, { method: 'divprune', keep: 2 })).tileCounts]).toEqual([2, 2]);
  await expect(phi3.prune(inputs, null, { method: 'tome', keep: 2 })).rejects.toThrow(/reads the tap 'penultimate'/);
  await phi3.dispose();
});
