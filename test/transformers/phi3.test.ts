/** Phi-3.5-vision as Transformers.js loads it, against PyTorch (test/fixtures/families/phi3_v_whole/make.py). */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  AutoModelForCausalLM,
  AutoProcessor,
  type DynamicCache,
  env,
  type PreTrainedModel,
  type Processor,
  Tensor,
} from '@huggingface/transformers';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { attach, type CallOptions, type LoadedModel, type PrunedImage } from '../../src/transformers/index.js';
import {
  compact,
  type KeptPatches,
  openVisionModel,
  type Positions,
  type VisionInputs,
  type VisionModel,
} from '../../src/vision/index.js';
import { imageOf, ROOT } from './family-cases.js';
import { answer, type Inputs, ids, int64, logitsByHand, tokens } from './support.js';

const FAMILY = 'phi3_v_whole';
const FOLDER = join(ROOT, FAMILY);
const CLIP = join(FOLDER, 'clip');
const [SIDE, IMAGE, UNITS, W] = [336, -300, 36, 24];
const POSITIONS: readonly Positions[] = ['compact', 'original'];
const LONG = { max_new_tokens: 8, eos_token_id: null as unknown as number };

interface Case {
  readonly seed: number;
  readonly rows: number;
  readonly columns: number;
  readonly tokens: number;
  readonly input_ids: number[];
  readonly unpruned: number[];
  /** With every third visual token. */
  readonly third: number[];
}

let model: PreTrainedModel;
let processor: Processor;
let vision: VisionModel;
let cases: (Case & { inputs: Inputs })[];
let detach: () => Promise<void>;
let pruned: readonly PrunedImage[] = [];

beforeAll(async () => {
  env.allowRemoteModels = false;
  env.localModelPath = ROOT;
  processor = await AutoProcessor.from_pretrained(FAMILY);
  model = await AutoModelForCausalLM.from_pretrained(FAMILY, { dtype: 'fp32' });
  vision = await openVisionModel(FOLDER, { clip: CLIP });
  const given: Case[] = JSON.parse(await readFile(join(FOLDER, 'expected.json'), 'utf8'));
  cases = given.map((one) => ({ ...one, inputs: wavesOf(one) }));
});
beforeEach(async () => {
  detach = await attach(model as LoadedModel, {
    ...{ model: FOLDER, clip: CLIP, keep: 5, onPruned: (images: readonly PrunedImage[]) => (pruned = images) },
  });
});
afterEach(() => detach());
afterAll(async () => {
  await vision.dispose();
  await model.dispose();
});

/** Crops of waves, as PyTorch had them, and ids. */
function wavesOf({ seed, rows, columns, input_ids }: Case): Inputs {
  const data = Float32Array.from({ length: 5 * 3 * SIDE * SIDE }, (_, i) => Math.sin(i * i + seed));
  return {
    ...withIds(input_ids),
    pixel_values: new Tensor('float32', data, [1, 5, 3, SIDE, SIDE]),
    image_sizes: int64([rows * SIDE, columns * SIDE], [1, 2]),
  };
}

function withIds(all: readonly (number | bigint)[]): Inputs {
  const dims = [1, all.length];
  return { input_ids: int64(all, dims), attention_mask: int64(new Array(all.length).fill(1), dims) };
}

const processed = (text: string | string[], images: unknown) =>
  (processor as unknown as (text: string | string[], images: unknown) => Promise<Inputs>)(text, images);
const prompt = (question: string, images = 1) =>
  `<|user|>\n${Array.from({ length: images }, (_, i) => `<|image_${i + 1}|>\n`).join('')}${question}<|end|>\n<|assistant|>\n`;

const generate = (inputs: Inputs, desap?: CallOptions) =>
  answer(inputs, model.generate({ ...inputs, ...LONG, ...(desap && { desap }) } as never));

const visionInputs = ({ pixel_values, image_sizes }: Inputs): VisionInputs => ({
  pixelValues: pixel_values,
  imageSizes: image_sizes,
});

/** What one of the loaded model's own graphs gives. */
async function rows(input_ids: readonly number[], features: Float32Array): Promise<Float32Array> {
  const { inputs_embeds } = await model.sessions.prepare_inputs_embeds.run({
    input_ids: int64(input_ids, [1, input_ids.length]).ort_tensor,
    image_features: new Tensor('float32', features, [features.length / W, W]).ort_tensor,
  });
  return inputs_embeds.data;
}

/** A prompt that is shortened by hand and decoded by the loaded model's own graphs: no cache, the whole sequence for each token. */
async function byHand(
  input_ids: readonly number[],
  kept: readonly (KeptPatches & { readonly features: { readonly data: unknown } })[],
  positions: Positions = 'compact',
): Promise<number[]> {
  const short = compact({ inputIds: input_ids, imageTokenId: IMAGE, kept, positions });
  const features = Float32Array.from(kept.flatMap(({ features: { data } }) => [...(data as Float32Array)]));
  let embeds = await rows(Array.from(short.inputIds.data as BigInt64Array, Number), features);
  const places = Array.from(short.positionIds.data as BigInt64Array, Number);
  const next = short.nextPosition - places.length;
  const generated: number[] = [];
  while (generated.length < LONG.max_new_tokens) {
    const logits = await logitsByHand(model, embeds, W, (i) => [places[i] ?? next + i]);
    generated.push(logits.indexOf(Math.max(...logits)));
    embeds = Float32Array.from([...embeds, ...(await rows(generated.slice(-1), new Float32Array()))]);
  }
  return generated;
}

it('gives PyTorch’s ids for all tokens, attached or not', async () => {
  for (const { inputs, unpruned } of cases) {
    for (const desap of [{ keep: 'all' }, { keep: UNITS, taskShare: 0 }, { keepRatio: 1, taskShare: 0 }] as const)
      expect(await generate(inputs, desap), JSON.stringify(desap)).toEqual([unpruned]);
  }
  await detach();
  for (const { inputs, unpruned } of cases) expect(await generate(inputs)).toEqual([unpruned]);
});

it('gives PyTorch’s ids for a given set, put together by compact', async () => {
  for (const { inputs, input_ids, tokens, third } of cases) {
    const [image] = await vision.encode(visionInputs(inputs));
    const all = (await image.all()).data as Float32Array;
    const indices = Int32Array.from({ length: Math.ceil(tokens / 3) }, (_, k) => 3 * k);
    const data = Float32Array.from([...indices].flatMap((at) => [...all.subarray(at * W, (at + 1) * W)]));
    const kept = { indices, assignment: new Int32Array(tokens), features: { data } };
    expect(await byHand(input_ids, [kept])).toEqual(third);
    image.dispose();
  }
});

it.each(POSITIONS)('gives what hand compaction gives, positions %s', async (positions) => {
  for (const { inputs, input_ids } of cases)
    for (const how of [{ keep: 1 }, { keep: 9, merge: false }, { keep: 30, allocation: 'image' as const }]) {
      const question = 'where is the red one?';
      const [got] = await generate(inputs, { ...how, question, positions });
      const [image] = await vision.encode(visionInputs(inputs));
      const kept = await image.prune(question, how);
      expect(pruned.map(({ indices, source }) => ({ indices, source }))).toEqual([
        { indices: kept.indices, source: kept.source },
      ]);
      expect(pruned[0].task).toEqual({ form: 'clip' });
      expect(got, JSON.stringify(how)).toEqual(await byHand(input_ids, [kept], positions));
      image.dispose();
    }
});

describe('with the inputs of the processor', () => {
  const question = 'where is the red one?';

  it('reads the question out of the prompt, and keeps separators as the layout says', async () => {
    const inputs = await processed(prompt(question), imageOf([1, 90, 60]));
    const [got] = await generate(inputs, { taskShare: 1 });
    const [image] = await vision.encode(visionInputs(inputs));
    const kept = await image.prune(question, { keep: 5, taskShare: 1 });
    const [{ indices, source, tileCounts }] = pruned;
    expect(indices).toEqual(kept.indices);
    expect([...tileCounts]).toEqual(new Array(5).fill(5));
    expect([...source].filter((one) => one !== 2)).toHaveLength(25);
    expect(source).toContain(2);
    const all = Array.from(inputs.input_ids.data as BigInt64Array, Number);
    expect(got).toEqual(await byHand(all, [kept]));
    image.dispose();
  });

  it('keeps all separators where it is told to', async () => {
    await detach();
    const how = { model: FOLDER, clip: CLIP, keep: 1, newline: 'all' as const };
    const inputs = await processed(prompt(question), imageOf([1, 64, 64]));
    detach = await attach(model as LoadedModel, { ...how, onPruned: (images) => (pruned = images) });
    await generate(inputs);
    // Twelve rows of crops, one between, six rows of the whole image.
    expect([...pruned[0].source].filter((one) => one === 2)).toHaveLength(19);
  });

  it('takes several images, each with its own share', async () => {
    const inputs = await processed(prompt(question, 2), [imageOf([1, 64, 64]), imageOf([2, 64, 64])]);
    const unpruned = await generate(inputs, { keep: 'all' });
    expect(await generate(inputs, { keep: UNITS })).toEqual(unpruned);
    const [got] = await generate(inputs, { keep: [3, 8] });
    expect(pruned.map(({ tileCounts }) => [...tileCounts])).toEqual([new Array(5).fill(3), new Array(5).fill(8)]);
    const images = await vision.encode(visionInputs(inputs));
    const kept = await Promise.all(images.map((one, i) => one.prune(question, { keep: [3, 8][i] })));
    const all = Array.from(inputs.input_ids.data as BigInt64Array, Number);
    expect(got).toEqual(await byHand(all, kept));
    for (const one of images) one.dispose();
    await detach();
    expect(await generate(inputs)).toEqual(unpruned);
  });

  it('gives each sequence of a padded batch what it gives alone', async () => {
    const pictures = [imageOf([3, 64, 64]), imageOf([4, 120, 50])];
    const texts = [prompt('where is the red one?'), prompt('what is it?')];
    const both = await processed(texts, pictures);
    expect(both.attention_mask.data).toContain(0n);
    for (const desap of [{ keep: 4 }, { keep: UNITS }]) {
      const alone: number[][] = [];
      for (const [i, text] of texts.entries())
        alone.push(...(await generate(await processed(text, pictures[i]), desap)));
      expect(await generate(both, desap)).toEqual(alone);
    }
    expect(pruned.map(({ sequence }) => sequence)).toEqual([0, 1]);
  });

  it.each(POSITIONS)('continues a pruned cache, positions %s', async (positions) => {
    const inputs = await processed(prompt(question), imageOf([1, 64, 64]));
    const desap = { positions, question, keep: 3 };
    const begun = async () =>
      (await model.generate({
        ...inputs,
        ...{ ...LONG, max_new_tokens: 3, return_dict_in_generate: true, desap },
      } as never)) as unknown as { sequences: Tensor; past_key_values: DynamicCache };
    const turn = tokens(processor, `<|end|>\n${prompt('is it red?', 0)}`).data as BigInt64Array;
    const talk = withIds([...((await begun()).sequences.data as BigInt64Array), ...turn]);
    const { pixel_values, image_sizes } = inputs;
    const whole = await ids(model.generate({ ...talk, pixel_values, image_sizes, ...LONG, desap } as never));
    for (const more of [{ pixel_values, image_sizes }, {}]) {
      const { past_key_values } = await begun();
      expect(await ids(model.generate({ ...talk, ...more, ...LONG, desap, past_key_values } as never))).toEqual(whole);
    }
  });

  it('takes the ids of each image that Python’s processor gives', async () => {
    const inputs = await processed(prompt(question), imageOf([1, 64, 64]));
    const python = Array.from(inputs.input_ids.data as BigInt64Array, (id) => (id < 0n ? -1n : id));
    expect(await generate({ ...inputs, ...withIds(python) })).toEqual(await generate(inputs));
  });

  it('answers prompts without images as before', async () => {
    const inputs = await processed(prompt('what is it?', 0), null);
    const attached = await generate(inputs);
    await detach();
    expect(await generate(inputs)).toEqual(attached);
  });

  it('refuses prompts that do not fit their images, and images without sizes', async () => {
    const inputs = await processed(prompt(question), imageOf([1, 64, 64]));
    const all = Array.from(inputs.input_ids.data as BigInt64Array);
    all.splice(all.indexOf(BigInt(IMAGE)), 1);
    await expect(generate({ ...inputs, ...withIds(all) })).rejects.toMatchObject({
      code: 'ERR_SHAPE',
      message: /^input_ids: got 198 visual tokens \(negative ids\) in a sequence, wanted .*: 199/,
    });
    const { image_sizes: _, ...others } = inputs;
    await expect(generate(others)).rejects.toMatchObject({ code: 'ERR_DTYPE', message: /^image_sizes: got undefined/ });
  });
});

describe('attach refuses, and leaves the model alone', () => {
  beforeEach(() => detach());

  /** The model with another graph that makes rows, or another decoder. */
  const changed = (sessions: object) =>
    Object.assign(Object.create(model), { sessions: { ...model.sessions, ...sessions } }) as LoadedModel;
  const rowsBy = (run: (feeds: Record<string, Tensor>) => object) => {
    const { prepare_inputs_embeds } = model.sessions;
    return { prepare_inputs_embeds: Object.create(prepare_inputs_embeds, { run: { value: run } }) };
  };

  it.each<[string, () => LoadedModel, string, RegExp]>([
    [
      'rows that are no features as they are',
      () =>
        changed(
          rowsBy(async (feeds) => {
            const { inputs_embeds } = await model.sessions.prepare_inputs_embeds.run(feeds);
            const twice = (inputs_embeds.data as Float32Array).map(
              (value) => (feeds.image_features.dims[0] ? 2 : 1) * value,
            );
            return { inputs_embeds: new Tensor('float32', twice, inputs_embeds.dims) };
          }),
        ),
      'ERR_GRAPH',
      /^model\.sessions\.prepare_inputs_embeds: got other rows for two visual tokens/,
    ],
    [
      'a graph that wants the features of a whole image',
      () =>
        changed(
          rowsBy(async (feeds) => {
            if (feeds.image_features.dims[0] === 2) throw new Error('too few');
            return model.sessions.prepare_inputs_embeds.run(feeds);
          }),
        ),
      'ERR_GRAPH',
      /^model\.sessions\.prepare_inputs_embeds: onnxruntime does not run it: too few/,
    ],
    [
      'a decoder with inputs of unknown meaning',
      () => changed({ model: Object.create(model.sessions.model, { inputNames: { value: ['image_features'] } }) }),
      'ERR_GRAPH',
      /^model\.sessions\.model: got the inputs image_features, wanted none/,
    ],
    ['no decoder', () => changed({ model: undefined }), 'ERR_VALUE', /^model\.sessions\.model: got undefined/],
  ])('%s', async (_, given, code, message) => {
    const attached = attach(given(), { model: FOLDER, clip: CLIP, keep: 4 });
    await expect(attached).rejects.toMatchObject({ code, message });
    expect(await generate(cases[0].inputs)).toEqual([cases[0].unpruned]);
  });

  it('no CLIP folder, another CLIP', async () => {
    const without = attach(model as LoadedModel, { model: FOLDER, keep: 4 });
    await expect(without).rejects.toMatchObject({ code: 'ERR_VALUE', message: /^clip: got undefined/ });
    const other = attach(model as LoadedModel, { model: FOLDER, clip: join(ROOT, 'llava_next/clip'), keep: 4 });
    await expect(other).rejects.toMatchObject({ code: expect.stringMatching(/^ERR_/) });
    expect(await generate(cases[0].inputs)).toEqual([cases[0].unpruned]);
  });
});
