import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type DynamicCache,
  type PreTrainedModel,
  type Processor,
  type RawImage,
  Tensor,
} from '@huggingface/transformers';
import { InferenceSession } from 'onnxruntime-node';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { openBackend } from '../../src/index.js';
import { readQwenTower } from '../../src/onnx/qwen-graph.js';
import { attach, type PrunedImage } from '../../src/transformers/index.js';
import { type EncoderForm, encoder, IMAGE, IMAGE_TOKEN, type Kind, PREFIX, SUFFIX, writeQwen } from './small/qwen.js';
import {
  answer,
  decodeByHand,
  EIGHT,
  embed,
  FRESH,
  type HandMade,
  type Inputs,
  ids,
  int64,
  load,
  logitsByHand,
  photo,
  tokens,
} from './support.js';

type RopeIndex = (ids: Tensor, grids: Tensor, videos: undefined, mask: Tensor) => [Tensor, Tensor];

const QUESTIONS = ['what color is the star ?', 'is there a big red thing in the top-left corner ?'];
const SIZES = [
  [40, 24],
  [24, 32],
] as const; // width, height: 15 and 12 visual tokens
const TOKENS = [15, 12];

const kernels = openBackend({ device: 'reference' });

/** The tokens to keep, from the encoder's own graph with the signals as further outputs. */
async function referenceKept(
  inspected: InferenceSession,
  model: PreTrainedModel,
  inputs: Inputs,
  text: number[],
  keep: number,
  taskShare = 0.5,
) {
  const [pixels, grid] = [inputs.pixel_values.ort_tensor, inputs.image_grid_thw.ort_tensor];
  const outputs = await inspected.run({ [inspected.inputNames[0]]: pixels, [inspected.inputNames[1]]: grid });
  const question = await embed(model, text);
  const visual = kernels.sync.unitRows({ x: outputs.attended });
  const words = kernels.sync.unitRows({ x: { data: question.data, dims: question.dims } });
  const unitMean = ({ data, dims: [rows, width] }: { data: unknown; dims: readonly number[] }) => {
    const mean = Array.from({ length: width }, (_, c) => {
      let sum = 0;
      for (let r = 0; r < rows; r++) sum += (data as Float32Array)[r * width + c] / rows;
      return sum;
    });
    return Float32Array.from(mean, (value) => value / Math.hypot(...mean));
  };
  const { task } = kernels.sync.align({ visual, text: words, global: unitMean(visual), endOfText: unitMean(words) });
  const order = (scores: ArrayLike<number>) =>
    [...Array.from(scores).keys()].sort((a, b) => scores[b] - scores[a] || a - b);
  const relevant = order(task).slice(0, Math.floor(keep * taskShare + 0.5));
  const salient = order(outputs.received.data as Float32Array).filter((index) => !relevant.includes(index));
  const indices = Int32Array.from([...relevant, ...salient.slice(0, keep - relevant.length)]).sort();
  const features = outputs.image_features;
  return { indices, features: kernels.sync.merge({ features, kept: indices }).tokens.data as Float32Array };
}

describe.each([
  ['qwen2_vl', FRESH],
  ['qwen2_5_vl', FRESH + 1],
] as [Kind, number][])('a small %s with fresh weights, seed %i', (kind, seed) => {
  let root: string;
  let folder: string;
  let processor: Processor;
  let model: PreTrainedModel;
  let inspected: InferenceSession;
  let detach: () => Promise<void>;
  let pruned: readonly PrunedImage[] = [];
  const photos: RawImage[] = [];
  const prompts = QUESTIONS.map((question) => `${PREFIX}${IMAGE}${question}${SUFFIX}`);
  const singles: Inputs[] = [];
  let both: Inputs;
  let plain: { singles: number[][]; both: number[][] };

  beforeAll(async () => {
    root = await mkdtemp(join(tmpdir(), 'desap-qwen-'));
    folder = await writeQwen(root, seed, kind);
    ({ processor, model } = await load(root, 'small-qwen'));
    inspected = await InferenceSession.create(join(folder, 'onnx', 'inspected.onnx'));
    for (const [i, [width, height]] of SIZES.entries()) photos.push(await (await photo(i + 1)).resize(width, height));
    for (const [i, prompt] of prompts.entries()) singles.push(await processor(prompt, photos[i]));
    both = batch(singles);
    plain = { singles: [], both: [] };
    for (const inputs of singles)
      plain.singles.push(...(await answer(inputs, model.generate({ ...inputs, ...EIGHT }))));
  });
  beforeEach(async () => {
    const onPruned = (images: readonly PrunedImage[]) => {
      pruned = images;
    };
    detach = await attach(model, { model: folder, keep: 5, onPruned });
  });
  afterEach(() => detach());
  afterAll(async () => {
    await inspected.release();
    await model.dispose();
    await rm(root, { recursive: true });
  });

  /** Sequences of one image each as one batch, padded on the left. */
  function batch(all: Inputs[]): Inputs {
    const length = Math.max(...all.map(({ input_ids }) => input_ids.dims[1]));
    const row = ({ input_ids }: Inputs, pad: bigint, value: (id: bigint) => bigint) => {
      const own = Array.from(input_ids.data as BigInt64Array, value);
      return [...new Array<bigint>(length - own.length).fill(pad), ...own];
    };
    const dims = [all.length, length];
    const pixels = all.flatMap(({ pixel_values }) => [...(pixel_values.data as Float32Array)]);
    const channels = all[0].pixel_values.dims[1];
    return {
      input_ids: int64(
        all.flatMap((inputs) => row(inputs, 0n, (id) => id)),
        dims,
      ),
      attention_mask: int64(
        all.flatMap((inputs) => row(inputs, 0n, () => 1n)),
        dims,
      ),
      pixel_values: new Tensor('float32', Float32Array.from(pixels), [pixels.length / channels, channels]),
      image_grid_thw: int64(
        all.flatMap(({ image_grid_thw }) => [...(image_grid_thw.data as BigInt64Array)]),
        [all.length, 3],
      ),
    };
  }

  /** One sequence without the dropped tokens: each other column keeps its own place on all three axes. */
  async function byHand(inputs: Inputs, images: { indices: Int32Array; features: Float32Array }[], counts: number[]) {
    const all = Array.from(inputs.input_ids.data as BigInt64Array, Number);
    const ropeIndex = (model as unknown as { get_rope_index: RopeIndex }).get_rope_index.bind(model);
    const [places] = ropeIndex(inputs.input_ids, inputs.image_grid_thw, undefined, inputs.attention_mask);
    const stays: number[] = [];
    let [image, token] = [0, 0];
    for (const [column, id] of all.entries()) {
      if (id !== IMAGE_TOKEN || images[image].indices.includes(token)) stays.push(column);
      if (id === IMAGE_TOKEN && ++token === counts[image]) [image, token] = [image + 1, 0];
    }
    const embeds = await embed(
      model,
      stays.map((column) => all[column]),
    );
    const width = embeds.dims[2];
    const features = images.flatMap((one) => [...one.features]);
    let row = 0;
    for (const [slot, column] of stays.entries())
      if (all[column] === IMAGE_TOKEN)
        (embeds.data as Float32Array).set(features.slice(row * width, ++row * width), slot * width);
    const columns = all.map((_, column) =>
      [0, 1, 2].map((axis) => Number((places.data as BigInt64Array)[axis * all.length + column])),
    );
    const next = 1 + Math.max(...columns.flat());
    const positions = (i: number) =>
      i < stays.length ? columns[stays[i]] : new Array(3).fill(next + i - stays.length);
    return { embeds, positions } satisfies HandMade;
  }

  const questionIds = (question: string) => Array.from(tokens(processor, question).data as BigInt64Array, Number);

  it('gives the unpruned ids for K = P, for all, and after detach', async () => {
    for (const [i, inputs] of singles.entries())
      for (const desap of [{ keep: TOKENS[i] }, { keep: 'all' }, { keepRatio: 1 }, { keepRatio: 0.9999 }])
        expect(await answer(inputs, model.generate({ ...inputs, ...EIGHT, desap }))).toEqual([plain.singles[i]]);
    await detach();
    for (const [i, inputs] of singles.entries())
      expect(await answer(inputs, model.generate({ ...inputs, ...EIGHT }))).toEqual([plain.singles[i]]);
  });

  it('keeps what the signals say, and gives what hand compaction gives', async () => {
    for (const [i, inputs] of singles.entries())
      for (const [keep, taskShare] of [
        [1, 0.5],
        [4, 0.5],
        [7, 1],
        [6, 0],
        [11, 0.5],
      ]) {
        const wanted = await referenceKept(inspected, model, inputs, questionIds(QUESTIONS[i]), keep, taskShare);
        const got = await answer(inputs, model.generate({ ...inputs, ...EIGHT, desap: { keep, taskShare } }));
        expect(pruned[0].indices, `keep ${keep}`).toEqual(wanted.indices);
        const hand = await byHand(inputs, [wanted], [TOKENS[i]]);
        expect(got, `keep ${keep}`).toEqual([await decodeByHand(model, hand, 8)]);
      }
  });

  it('gives a batch what its sequences get alone', async () => {
    for (const keep of [
      [4, 9],
      [15, 2],
      [7, 7],
    ]) {
      const together = await answer(both, model.generate({ ...both, ...EIGHT, desap: { keep } }));
      expect(pruned.map((image) => [image.sequence, image.indices.length])).toEqual([
        [0, keep[0]],
        [1, keep[1]],
      ]);
      for (const [i, inputs] of singles.entries()) {
        const alone = await answer(inputs, model.generate({ ...inputs, ...EIGHT, desap: { keep: keep[i] } }));
        expect([together[i]], `keep ${keep}`).toEqual(alone);
      }
    }
  });

  it('prunes several images of one prompt, each with its own K', async () => {
    const pads = TOKENS.map((count) => IMAGE.replace('<|image_pad|>', '<|image_pad|>'.repeat(count)));
    const input_ids = tokens(processor, `${PREFIX}${pads[0]}and${pads[1]}${QUESTIONS[0]}${SUFFIX}`);
    const attention_mask = int64(new Array(input_ids.dims[1]).fill(1), input_ids.dims);
    const inputs: Inputs = { ...both, input_ids, attention_mask };
    const asked = questionIds(`and ${QUESTIONS[0]}`);
    const kept = await Promise.all([
      referenceKept(inspected, model, singles[0], asked, 3),
      referenceKept(inspected, model, singles[1], asked, 6),
    ]);
    const got = await answer(inputs, model.generate({ ...inputs, ...EIGHT, desap: { keep: [3, 6] } }));
    expect(got).toEqual([await decodeByHand(model, await byHand(inputs, kept, TOKENS), 8)]);
  });

  it('continues a pruned cache as if it had not stopped', async () => {
    const [inputs] = singles;
    const { pixel_values, image_grid_thw } = inputs;
    const desap = { question: QUESTIONS[0] };
    const cached = { ...EIGHT, return_dict_in_generate: true, desap };
    for (const count of [1, 4]) {
      const first = async () =>
        (await model.generate({ ...inputs, ...cached, max_new_tokens: count })) as unknown as {
          sequences: Tensor;
          past_key_values: DynamicCache;
        };
      const turn = tokens(processor, `${PREFIX}is it red ?${SUFFIX}`);
      const all = [...((await first()).sequences.data as BigInt64Array), ...(turn.data as BigInt64Array)];
      const input_ids = int64(all, [1, all.length]);
      const attention_mask = int64(new Array(all.length).fill(1), [1, all.length]);
      const images = { pixel_values, image_grid_thw };
      const whole = await ids(model.generate({ ...EIGHT, input_ids, attention_mask, ...images, desap }));
      for (const more of [
        { attention_mask, ...images },
        { attention_mask, image_grid_thw },
      ]) {
        const { past_key_values } = await first();
        expect(await ids(model.generate({ ...EIGHT, ...more, input_ids, past_key_values, desap }))).toEqual(whole);
      }
    }
  });

  it('answers direct calls without touching what it was given', async () => {
    const inputs = { ...singles[0] };
    const before = Object.entries(inputs).map(([name, value]) => [name, value, value.data?.slice?.()] as const);
    const { logits } = await model(inputs);
    expect(Object.keys(inputs)).toEqual(before.map(([name]) => name));
    for (const [name, value, data] of before) {
      expect(inputs[name]).toBe(value);
      if (data) expect(value.data).toEqual(data);
    }
    const wanted = await referenceKept(inspected, model, inputs, questionIds(QUESTIONS[0]), 5);
    const { embeds, positions } = await byHand(inputs, [wanted], TOKENS);
    const [, length, width] = embeds.dims;
    expect(logits.dims.slice(0, 2)).toEqual([1, length]);
    const hand = await logitsByHand(model, embeds.data as Float32Array, width, positions);
    const got = [...(logits.data as Float32Array).slice(-hand.length)];
    for (const [id, value] of hand.entries()) expect(got[id]).toBeCloseTo(value, 4);
  });

  it('encodes videos beside images as it does images, and wants grids and frames of each', async () => {
    // A video of one frame of 2 x 4 patches.
    const [{ pixel_values, image_grid_thw, input_ids }] = singles;
    const channels = pixel_values.dims[1];
    const frame = (pixel_values.data as Float32Array).slice(-8 * channels);
    const prompt = (pad: string) => {
      const part = tokens(processor, `<|vision_start|>${pad}${pad}<|vision_end|>`);
      const all = [...(part.data as BigInt64Array), ...(input_ids.data as BigInt64Array)];
      const dims = [1, all.length];
      return { input_ids: int64(all, dims), attention_mask: int64(new Array(all.length).fill(1), dims) };
    };
    const video = {
      pixel_values_videos: new Tensor('float32', frame, [8, channels]),
      video_grid_thw: int64([1, 2, 4], [1, 3]),
    };
    const inputs = { ...prompt('<|video_pad|>'), pixel_values, image_grid_thw };
    const pruned = await model({ ...inputs, ...video, desap: { keep: [5, 1] } });
    expect(pruned.logits.dims[1]).toBe(inputs.input_ids.dims[1] - TOKENS[0] - 2 + 5 + 1);
    const kept = await model({ ...inputs, ...video, desap: { keep: [TOKENS[0], 2] } });
    const grid = { code: 'ERR_VALUE', message: /^video_grid_thw: got grids for 0, wanted grids for 1, / };
    await expect(model(inputs)).rejects.toMatchObject(grid);
    await expect(model.generate({ ...inputs, ...EIGHT })).rejects.toMatchObject(grid);
    const frames = { code: 'ERR_VALUE', message: /^pixel_values_videos: got undefined, wanted the frames/ };
    const { video_grid_thw } = video;
    await expect(model({ ...inputs, video_grid_thw })).rejects.toMatchObject(frames);
    await expect(model.generate({ ...inputs, ...EIGHT, video_grid_thw })).rejects.toMatchObject(frames);
    const image: Inputs = { ...singles[0], input_ids: tokens(processor, `${PREFIX}${IMAGE}${IMAGE}a${SUFFIX}`) };
    const missing = { code: 'ERR_VALUE', message: /^image_grid_thw: got grids for 1, wanted grids for 2, / };
    image.attention_mask = int64(new Array(image.input_ids.dims[1]).fill(1), image.input_ids.dims);
    await expect(model(image)).rejects.toMatchObject(missing);
    await expect(model.generate({ ...image, ...EIGHT })).rejects.toMatchObject(missing);
    await detach();
    const images = {
      pixel_values: new Tensor('float32', Float32Array.from([...frame, ...(pixel_values.data as Float32Array)]), [
        pixel_values.dims[0] + 8,
        channels,
      ]),
      image_grid_thw: int64([1n, 2n, 4n, ...(image_grid_thw.data as BigInt64Array)], [2, 3]),
    };
    const whole = await model({ ...prompt('<|image_pad|>'), ...images });
    for (const [i, value] of (whole.logits.data as Float32Array).entries())
      expect(kept.logits.data[i]).toBeCloseTo(value, 4);
  });

  it('needs no question where the saliency map alone decides', async () => {
    const mute = await processor(`${PREFIX}${IMAGE}${SUFFIX}`, photos[0]);
    expect(await answer(mute, model.generate({ ...mute, ...EIGHT, desap: { taskShare: 0 } }))).toHaveLength(1);
    expect([...pruned[0].source]).toEqual(new Array(5).fill(1));
    await expect(model.generate({ ...mute, ...EIGHT })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: /^question: /,
    });
  });

  it('gives kept tokens as they are without merging', async () => {
    await model.generate({ ...singles[0], ...EIGHT, desap: { merge: false } });
    const [{ indices, assignment, counts }] = pruned;
    expect([...counts]).toEqual(new Array(5).fill(1));
    for (const [k, index] of indices.entries()) expect(assignment[index]).toBe(k);
    expect(assignment.filter((place) => place < 0)).toHaveLength(10);
  });

  it('leaves no trace after detach', async () => {
    const { vision_encoder } = model.sessions;
    const features = await model.encode_image(singles[0]);
    await detach();
    for (const name of ['forward', 'generate', 'prepare_inputs_for_generation', '_update_model_kwargs_for_generation'])
      expect(Object.hasOwn(model, name)).toBe(false);
    expect(model.sessions.vision_encoder).not.toBe(vision_encoder);
    const own = await model.encode_image(singles[0]);
    expect(features.dims).toEqual(own.dims);
    for (const [i, value] of (own.data as Float32Array).entries()) expect(features.data[i]).toBeCloseTo(value, 4);
  });

  it('refuses what it cannot do', async () => {
    await detach();
    const good = { model: folder, keep: 4 };
    const refused = (options: object, code: string) =>
      expect(attach(model, { ...good, ...options })).rejects.toMatchObject({ name: 'DesapError', code });
    await refused({ clip: 'models/tiny-clip' }, 'ERR_VALUE');
    await refused({ positions: 'compact' }, 'ERR_VALUE');
    await refused({ encoding: 'kq' }, 'ERR_VALUE');
    const other = join(root, 'other');
    await writeQwen(other, seed + 77, kind);
    await refused({ model: join(other, 'small-qwen') }, 'ERR_HEAD_MISMATCH');
    await writeFile(join(other, 'small-qwen', 'onnx', 'vision_encoder.onnx'), encoder(seed, kind, { inspect: true }));
    await refused({ model: join(other, 'small-qwen') }, 'ERR_GRAPH');
    expect(await answer(singles[0], model.generate({ ...singles[0], ...EIGHT }))).toEqual([plain.singles[0]]);
  });
});

/** What is kept and answered for three sizes of a photo, by encoders of the same weights in several forms. */
async function answersOf(kind: Kind, seed: number, forms: readonly EncoderForm[]): Promise<unknown[]> {
  const runs: unknown[] = [];
  for (const form of forms) {
    const root = await mkdtemp(join(tmpdir(), 'desap-forms-'));
    const folder = await writeQwen(root, seed, kind, form);
    const { processor, model } = await load(root, 'small-qwen');
    const run: unknown[] = [];
    const onPruned = (images: readonly PrunedImage[]) => run.push(images);
    const detach = await attach(model, { model: folder, keep: 6, onPruned });
    for (const [width, height] of [...SIZES, [40, 40]] as const) {
      const image = await (await photo(4)).resize(width, height);
      const inputs = await processor(`${PREFIX}${IMAGE}${QUESTIONS[0]}${SUFFIX}`, image);
      run.push(await ids(model.generate({ ...inputs, ...EIGHT })));
    }
    runs.push(run);
    await detach();
    await model.dispose();
    await rm(root, { recursive: true });
  }
  return runs;
}

it('undoes the window order for scores and features alike', async () => {
  const forms = [{ windows: true, masks: false }, { windows: false }];
  const [windows, plain] = await answersOf('qwen2_5_vl', FRESH + 2, forms);
  expect(windows).toEqual(plain);
});

it.each(['qwen2_vl', 'qwen2_5_vl'] as const)('reads %s encoders in the forms of other exports', async (kind) => {
  const [plain, sdpa] = await answersOf(kind, FRESH + 3, [{}, { style: 'sdpa' }]);
  expect(sdpa).toEqual(plain);
});

it.each(['models/tiny-llava/onnx/vision_encoder.onnx', 'models/tiny-clip/onnx/text_model.onnx'])(
  'refuses the graph of another kind of model: %s',
  (file) => {
    expect(() => readQwenTower(file, 4)).toThrow(expect.objectContaining({ code: 'ERR_GRAPH' }));
  },
);
