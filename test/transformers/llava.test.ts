import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  DynamicCache,
  type PreTrainedModel,
  type Processor,
  random,
  Tensor,
  TextStreamer,
} from '@huggingface/transformers';
import { Tensor as OrtTensor } from 'onnxruntime-common';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { extractHead } from '../../src/onnx/index.js';
import { attach, type CallOptions, type PrunedImage } from '../../src/transformers/index.js';
import { compact, LlavaVision, type Positions } from '../../src/vision/index.js';
import { IMAGE_TOKEN, PATCHES, type SmallLlava, writeLlava } from './small/llava.js';
import {
  answer,
  decodeByHand,
  EIGHT,
  embed,
  FRESH,
  type Inputs,
  ids,
  int64,
  load,
  logitsByHand,
  photo,
  tokens,
} from './support.js';

const QUESTIONS = ['what color is the star ?', 'is there a big red thing in the top-left corner ?'];
const POSITIONS: readonly Positions[] = ['compact', 'original'];

describe.each([FRESH, FRESH + 1])('a small LLaVA with fresh weights, seed %i', (seed) => {
  let root: string;
  let folders: SmallLlava;
  let processor: Processor;
  let model: PreTrainedModel;
  let vision: LlavaVision;
  let detach: () => Promise<void>;
  let pruned: readonly PrunedImage[] = [];
  const prompts = QUESTIONS.map((question) => `<image>${question}<ans>`);
  const singles: Inputs[] = [];
  let both: Inputs;
  let plain: { singles: number[][]; both: number[][] };

  beforeAll(async () => {
    root = await mkdtemp(join(tmpdir(), 'desap-llava-'));
    folders = await writeLlava(root, seed);
    ({ processor, model } = await load(root, 'small-llava'));
    vision = await LlavaVision.open(join(folders.llava, 'onnx', 'vision_encoder.onnx'), { clip: folders.clip });
    const photos = [await photo(1), await photo(2)];
    for (const [i, prompt] of prompts.entries()) singles.push(await processor(photos[i], prompt));
    both = await processor(photos, prompts, { padding: true });
    plain = { singles: [], both: [] };
    for (const inputs of singles)
      plain.singles.push(...(await answer(inputs, model.generate({ ...inputs, ...EIGHT }))));
    plain.both = await answer(both, model.generate({ ...both, ...EIGHT }));
  });
  beforeEach(async () => {
    detach = await attach(model, {
      clip: folders.clip,
      model: folders.llava,
      keep: 5,
      onPruned: (images) => {
        pruned = images;
      },
    });
  });
  afterEach(() => detach());
  afterAll(async () => {
    await vision.dispose();
    await model.dispose();
    await rm(root, { recursive: true });
  });

  /** The prompt of one sequence without the dropped tokens, made of public parts. */
  async function byHand(inputs: Inputs, questions: string[], keep: number[], positions: Positions = 'compact') {
    const images = keep.map((_, i) => {
      const size = 3 * 32 * 32;
      const data = (inputs.pixel_values.data as Float32Array).slice(i * size, (i + 1) * size);
      return new OrtTensor('float32', data, [1, 3, 32, 32]);
    });
    const kept = await Promise.all(images.map((image, i) => vision.prune(image, questions[i], { keep: keep[i] })));
    const inputIds = Array.from(inputs.input_ids.data as BigInt64Array, Number);
    const short = compact({ inputIds, imageTokenId: IMAGE_TOKEN, kept, positions });
    const shortIds = Array.from(short.inputIds.data as BigInt64Array, Number);
    const embeds = await embed(model, shortIds);
    const features = kept.flatMap((one) => [...(one.features.data as Float32Array)]);
    const width = embeds.dims[2];
    let row = 0;
    for (const [at, id] of shortIds.entries())
      if (id === IMAGE_TOKEN) (embeds.data as Float32Array).set(features.slice(row * width, ++row * width), at * width);
    const places = Array.from(short.positionIds.data as BigInt64Array, Number);
    const next = short.nextPosition - places.length;
    return { kept, prompt: { embeds, positions: (i: number) => [places[i] ?? next + i] } };
  }

  it('gives the unpruned ids for K = P, for all, and after detach', async () => {
    for (const [i, inputs] of singles.entries()) {
      for (const desap of [{ keep: PATCHES }, { keep: 'all' }, { keepRatio: 1 }, { keepRatio: 0.9999 }])
        expect(await answer(inputs, model.generate({ ...inputs, ...EIGHT, desap }))).toEqual([plain.singles[i]]);
      const original = model.generate({ ...inputs, ...EIGHT, desap: { keep: PATCHES, positions: 'original' } });
      expect(await answer(inputs, original)).toEqual([plain.singles[i]]);
    }
    await detach();
    for (const [i, inputs] of singles.entries())
      expect(await answer(inputs, model.generate({ ...inputs, ...EIGHT }))).toEqual([plain.singles[i]]);
    expect(await answer(both, model.generate({ ...both, ...EIGHT }))).toEqual(plain.both);
  });

  it.each(POSITIONS)('gives what hand compaction gives, positions %s', async (positions) => {
    for (const [i, inputs] of singles.entries())
      for (const keep of [1, 4, 9, 15]) {
        const hand = await byHand(inputs, [QUESTIONS[i]], [keep], positions);
        const got = await answer(inputs, model.generate({ ...inputs, ...EIGHT, desap: { keep, positions } }));
        expect(got, `keep ${keep}`).toEqual([await decodeByHand(model, hand.prompt, 8)]);
        expect(pruned[0].indices).toEqual(hand.kept[0].indices);
        expect(pruned[0].assignment).toEqual(hand.kept[0].assignment);
      }
  });

  it.each(POSITIONS)('gives a batch what its sequences get alone, positions %s', async (positions) => {
    for (const keep of [
      [4, 9],
      [PATCHES, 2],
      [7, 7],
    ]) {
      const together = await answer(both, model.generate({ ...both, ...EIGHT, desap: { keep, positions } }));
      expect(pruned.map((image) => image.sequence)).toEqual([0, 1]);
      for (const [i, inputs] of singles.entries()) {
        const alone = model.generate({ ...inputs, ...EIGHT, desap: { keep: keep[i], positions } });
        expect([together[i]], `keep ${keep}`).toEqual(await answer(inputs, alone));
      }
    }
  });

  it('prunes several images of one prompt, each with its own K', async () => {
    const placeholders = '<image>'.repeat(PATCHES);
    const text = `${placeholders}the left photo${placeholders}${QUESTIONS[0]}<ans>`;
    const inputs = { input_ids: tokens(processor, text), pixel_values: both.pixel_values } as Inputs;
    inputs.attention_mask = int64(new Array(inputs.input_ids.dims[1]).fill(1), inputs.input_ids.dims);
    const asked = `the left photo ${QUESTIONS[0]}`;
    const hand = await byHand(inputs, [asked, asked], [3, 6]);
    const got = await answer(inputs, model.generate({ ...inputs, ...EIGHT, desap: { keep: [3, 6] } }));
    expect(got).toEqual([await decodeByHand(model, hand.prompt, 8)]);
    expect(pruned.map(({ sequence, indices }) => [sequence, indices.length])).toEqual([
      [0, 3],
      [0, 6],
    ]);
  });

  it('shares a budget over the images of a prompt, and over those of each sequence', async () => {
    const placeholders = '<image>'.repeat(PATCHES);
    const text = `${placeholders}the left photo${placeholders}${QUESTIONS[0]}<ans>`;
    const inputs = { input_ids: tokens(processor, text), pixel_values: both.pixel_values } as Inputs;
    inputs.attention_mask = int64(new Array(inputs.input_ids.dims[1]).fill(1), inputs.input_ids.dims);
    const counts = async (of: Inputs, desap: CallOptions) => {
      await model.generate({ ...of, max_new_tokens: 1, desap: { allocation: 'prompt', ...desap } });
      return pruned.map(({ indices }) => indices.length);
    };
    for (const taskShare of [0, 0.5]) {
      const [first, second] = await counts(inputs, { keep: 9, taskShare });
      expect([first + second, Math.min(first, second) > 0]).toEqual([9, true]);
    }
    expect(await counts(inputs, { keep: 2 * PATCHES })).toEqual([PATCHES, PATCHES]);
    expect(await counts(inputs, { keep: 2 })).toEqual([1, 1]);
    expect(await counts(inputs, { keepRatio: 0.001 })).toEqual([1, 1]);
    expect(await counts(both, { keep: [3, 7] })).toEqual([3, 7]);
    await expect(counts(inputs, { keep: 1 })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: /^keep: got 1 for 2/,
    });
    const wrong = counts(inputs, { allocation: 'turn' as never });
    await expect(wrong).rejects.toMatchObject({ code: 'ERR_VALUE', message: /^allocation: got 'turn', wanted 'tile'/ });
  });

  it('takes presets: the one of a call is in place of that of attach', async () => {
    const kept = async (desap: CallOptions) => {
      await model.generate({ ...singles[0], max_new_tokens: 1, desap });
      return pruned.map(({ indices }) => [...indices]);
    };
    const diverse = { alignment: 'mean', complement: 'diversity', distances: 'projected' } as const;
    expect(await kept({ preset: 'best' })).toEqual(await kept(diverse));
    expect(await kept({ preset: 'paper' })).toEqual(await kept({}));
    const hidden = { distances: 'hidden' } as const;
    expect(await kept({ preset: 'best', ...hidden })).toEqual(await kept({ ...diverse, ...hidden }));
    await expect(kept({ preset: 'none' as never })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: /^preset: got 'none'/,
    });
    await expect(kept({ distances: 'hidden' })).rejects.toMatchObject({ code: 'ERR_VALUE', message: /^distances: / });
    const [best, paper] = [await kept({ preset: 'best' }), await kept({})];
    await detach();
    const onPruned = (images: readonly PrunedImage[]) => {
      pruned = images;
    };
    detach = await attach(model, { clip: folders.clip, model: folders.llava, keep: 5, preset: 'best', onPruned });
    expect(await kept({})).toEqual(best);
    expect(await kept({ preset: 'paper' })).toEqual(paper);
    expect(await kept({ complement: 'saliency', alignment: 'fcma' })).toEqual(paper);
  });

  it.each(POSITIONS)('counts masks and positions on, positions %s', async (positions) => {
    const [inputs] = singles;
    const length = inputs.input_ids.dims[1];
    const session = model.sessions.decoder_model_merged;
    const steps: number[][] = [];
    const run = vi.spyOn(session, 'run');
    await model.generate({ ...inputs, ...EIGHT, max_new_tokens: 3, desap: { positions } });
    for (const [feeds] of run.mock.calls as [Record<string, Tensor>][]) {
      const { inputs_embeds, attention_mask, position_ids } = feeds;
      steps.push([inputs_embeds.dims[1], attention_mask.dims[1], Number(position_ids.data.at(-1))]);
    }
    run.mockRestore();
    const short = length - PATCHES + 5;
    const last = positions === 'compact' ? short : length;
    expect(steps).toEqual([
      [short, short, last - 1],
      [1, short + 1, last],
      [1, short + 2, last + 1],
    ]);
  });

  it.each(POSITIONS)('continues a pruned cache as if it had not stopped, positions %s', async (positions) => {
    const [inputs] = singles;
    const desap = { positions, question: QUESTIONS[0] };
    const cached = { ...EIGHT, return_dict_in_generate: true, desap };
    for (const count of [1, 4]) {
      const first = async () =>
        (await model.generate({ ...inputs, ...cached, max_new_tokens: count })) as unknown as {
          sequences: Tensor;
          past_key_values: DynamicCache;
        };
      const turn = tokens(processor, 'is it red ?<ans>');
      const all = [...((await first()).sequences.data as BigInt64Array), ...(turn.data as BigInt64Array)];
      const input_ids = int64(all, [1, all.length]);
      const attention_mask = int64(new Array(all.length).fill(1), [1, all.length]);
      const { pixel_values } = inputs;
      const whole = await ids(model.generate({ ...EIGHT, input_ids, attention_mask, pixel_values, desap }));
      for (const more of [{ attention_mask }, { attention_mask, pixel_values }, {}]) {
        const { past_key_values } = await first();
        expect(await ids(model.generate({ ...EIGHT, ...more, input_ids, past_key_values, desap }))).toEqual(whole);
      }

      // Only what the cache does not hold, and the cache's tensors in a cache of the caller's own.
      const last = 1 + turn.dims[1];
      const rest = { input_ids: int64(all.slice(-last), [1, last]), attention_mask };
      const past_key_values = new DynamicCache({ ...(await first()).past_key_values });
      const [continuation] = await ids(model.generate({ ...EIGHT, ...rest, past_key_values, desap }));
      expect(continuation.slice(last)).toEqual(whole[0].slice(all.length));

      const short = { ...rest, attention_mask: int64(new Array(last).fill(1), [1, last]) };
      const refused = model.generate({ ...EIGHT, ...short, past_key_values: (await first()).past_key_values });
      await expect(refused).rejects.toMatchObject({ code: 'ERR_SHAPE' });
    }
  });

  it.each(POSITIONS)('serves loops of direct calls, positions %s', async (positions) => {
    const [inputs] = singles;
    const desap = { positions };
    const [wanted] = await answer(inputs, model.generate({ ...inputs, ...EIGHT, desap }));
    const got: number[] = [];
    let outputs = await model({ ...inputs, desap });
    for (let length = inputs.input_ids.dims[1] + 1; got.length < wanted.length; length++) {
      const logits = [...(outputs.logits.data as Float32Array).slice(-outputs.logits.dims[2])];
      got.push(logits.indexOf(Math.max(...logits)));
      const entries = Object.entries(outputs as Record<string, Tensor>).filter(([name]) => name.startsWith('present'));
      const past_key_values = new DynamicCache(
        Object.fromEntries(entries.map(([name, value]) => [name.replace('present', 'past_key_values'), value])),
      );
      const attention_mask = int64(new Array(length).fill(1), [1, length]);
      outputs = await model({ input_ids: int64(got.slice(-1), [1, 1]), attention_mask, past_key_values, desap });
    }
    expect(got).toEqual(wanted);
  });

  it('takes further images in later turns', async () => {
    const [inputs] = singles;
    const desap = { keep: 5, question: QUESTIONS[0] };
    const start = { ...EIGHT, return_dict_in_generate: true, max_new_tokens: 2, desap };
    const { sequences, past_key_values } = (await model.generate({ ...inputs, ...start })) as unknown as {
      sequences: Tensor;
      past_key_values: DynamicCache;
    };
    const turn = tokens(processor, `${'<image>'.repeat(PATCHES)}is it red ?<ans>`);
    const all = [...(sequences.data as BigInt64Array), ...(turn.data as BigInt64Array)];
    const input_ids = int64(all, [1, all.length]);
    const attention_mask = int64(new Array(all.length).fill(1), [1, all.length]);
    const prompt = { ...EIGHT, input_ids, attention_mask };
    const whole = await ids(model.generate({ ...prompt, pixel_values: both.pixel_values, desap }));
    const { pixel_values } = singles[1];
    expect(await ids(model.generate({ ...prompt, past_key_values, pixel_values, desap }))).toEqual(whole);
  });

  it('keeps calls apart that run at the same time', async () => {
    const call = async (keep: number) =>
      answer(singles[0], model.generate({ ...singles[0], ...EIGHT, desap: { keep } }));
    const alone = [await call(3), await call(8), await call(12)];
    expect(await Promise.all([call(3), call(8), call(12)])).toEqual(alone);
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
    const { prompt } = await byHand(inputs, [QUESTIONS[0]], [5]);
    const [, length, width] = prompt.embeds.dims;
    expect(logits.dims.slice(0, 2)).toEqual([1, length]);
    const wanted = await logitsByHand(model, prompt.embeds.data as Float32Array, width, prompt.positions);
    const got = [...(logits.data as Float32Array).slice(-wanted.length)];
    for (const [id, value] of wanted.entries()) expect(got[id]).toBeCloseTo(value, 4);
    expect((await model({ ...inputs, desap: { keep: 2 } })).logits.dims[1]).toBe(length - 3);
  });

  it('streams, samples and stops as before', async () => {
    const [inputs] = singles;
    const put: number[][] = [];
    const streamer = new TextStreamer(processor.tokenizer as never, { callback_function: () => {} });
    vi.spyOn(streamer, 'put').mockImplementation((value: bigint[][]) => void put.push(value.flat().map(Number)));
    const [streamed] = await ids(model.generate({ ...inputs, ...EIGHT, streamer }));
    expect(put[0]).toEqual(Array.from(inputs.input_ids.data as BigInt64Array, Number));
    expect(put.slice(1).flat()).toEqual(streamed.slice(inputs.input_ids.dims[1]));

    const sampled = async (desap?: object) => {
      random.seed(seed);
      const output = await ids(model.generate({ ...inputs, ...EIGHT, do_sample: true, top_k: 10, desap }));
      return output;
    };
    expect(await sampled({ keep: PATCHES })).toEqual(await sampled({ keep: 'all' }));
    random.seed();
    for (const count of [1, 3])
      expect((await answer(inputs, model.generate({ ...inputs, ...EIGHT, max_new_tokens: count })))[0]).toHaveLength(
        count,
      );
  });

  it('takes the question from the prompt, the call, or the caller’s own encoder', async () => {
    const kept = async (inputs: Inputs, desap: object) => {
      await model.generate({ ...inputs, max_new_tokens: 1, desap });
      return pruned.map(({ indices }) => [...indices]);
    };
    const fromPrompt = await kept(singles[0], { taskShare: 1 });
    expect(await kept(singles[0], { taskShare: 1, question: QUESTIONS[0] })).toEqual(fromPrompt);
    const encoded = await vision.text.encode(QUESTIONS[0]);
    expect(await kept(singles[0], { taskShare: 1, question: encoded })).toEqual(fromPrompt);
    const shares = await kept(both, { keepRatio: [0.25, 0.01] });
    expect(shares.map((indices) => indices.length)).toEqual([PATCHES / 4, 1]);
    expect(await kept(both, { taskShare: 1, question: QUESTIONS })).toEqual(await kept(both, { taskShare: 1 }));
    await expect(kept(singles[0], { question: QUESTIONS })).rejects.toMatchObject({ code: 'ERR_VALUE' });
    await expect(kept(singles[0], { question: ' ' })).rejects.toMatchObject({ code: 'ERR_VALUE' });
    const mute = await processor(await photo(1), '<image><ans>');
    await expect(kept(mute, {})).rejects.toMatchObject({ code: 'ERR_VALUE', message: /^question: / });
  });

  it('reads no question out of columns that the mask hides', async () => {
    const [{ input_ids, pixel_values }] = singles;
    const columns = input_ids.dims[1];
    // A sentence of words behind the prompt, in place of padding.
    const hidden = Array.from(tokens(processor, 'is there a ring ?').data as BigInt64Array);
    const length = columns + hidden.length;
    const padded = {
      input_ids: int64([...(input_ids.data as BigInt64Array), ...hidden], [1, length]),
      attention_mask: int64(
        Array.from({ length }, (_, i) => Number(i < columns)),
        [1, length],
      ),
      pixel_values,
    };
    await model({ ...singles[0], desap: { taskShare: 1 } });
    const [{ indices }] = pruned;
    await model({ ...padded, desap: { taskShare: 1 } });
    expect(pruned[0].indices).toEqual(indices);
  });

  it('works with a pruner of the caller, which stays open', async () => {
    await detach();
    const encoded = await vision.text.encode(QUESTIONS[0]);
    detach = await attach(model, { pruner: vision.pruner, model: folders.llava, keep: 4, question: encoded });
    const hand = await byHand(singles[0], [QUESTIONS[0]], [4]);
    const got = await answer(singles[0], model.generate({ ...singles[0], ...EIGHT }));
    expect(got).toEqual([await decodeByHand(model, hand.prompt, 8)]);
    const text = model.generate({ ...singles[0], ...EIGHT, desap: { question: QUESTIONS[0] } });
    await expect(text).rejects.toMatchObject({ code: 'ERR_VALUE' });
    await detach();
    expect((await byHand(singles[0], [QUESTIONS[0]], [4])).kept[0].indices).toEqual(hand.kept[0].indices);
  });

  it('works with a head in place of the one of the CLIP folder', async () => {
    const given = { ...singles[0], ...EIGHT };
    const wanted = await answer(singles[0], model.generate(given));
    await detach();
    const head = await extractHead({ visionModel: join(folders.clip, 'onnx', 'vision_model.onnx') });
    detach = await attach(model, { clip: folders.clip, head, model: folders.llava, keep: 5 });
    expect(await answer(singles[0], model.generate(given))).toEqual(wanted);
  });

  it('leaves no trace after detach', async () => {
    await detach();
    const own = Object.getOwnPropertyNames(model);
    const params = (model as unknown as { forward_params: string[] }).forward_params;
    const before = [...params];
    const release = vi.spyOn(model.sessions.vision_encoder, 'release');
    detach = await attach(model, { clip: folders.clip, model: folders.llava, keep: 5 });
    expect(release).toHaveBeenCalledOnce();
    const running = model.generate({ ...singles[0], ...EIGHT });
    await Promise.all([detach(), detach()]);
    await running;
    expect(Object.getOwnPropertyNames(model)).toEqual(own);
    expect((model as unknown as { forward_params: string[] }).forward_params).toBe(params);
    expect(params).toEqual(before);
    expect(model.sessions.vision_encoder.config).toEqual({ dtype: 'fp32', device: 'cpu' });
    const features = await model.encode_image({ pixel_values: singles[0].pixel_values });
    expect(features.dims).toEqual([1, PATCHES, 32]);
    expect(features).toBeInstanceOf(Tensor);
  });

  it('lets whoever encodes images by hand still do so', async () => {
    const attached = await model.encode_image({ pixel_values: both.pixel_values });
    await detach();
    const own = await model.encode_image({ pixel_values: both.pixel_values });
    expect(attached.dims).toEqual(own.dims);
    for (const [i, value] of (own.data as Float32Array).entries()) expect(attached.data[i]).toBeCloseTo(value, 4);
  });

  it('leaves calls without images alone', async () => {
    const input_ids = tokens(processor, 'what color is the star ?<ans>');
    const inputs = { input_ids, attention_mask: int64(new Array(input_ids.dims[1]).fill(1), input_ids.dims) };
    const attached = await ids(model.generate({ ...inputs, ...EIGHT }));
    await detach();
    expect(attached).toEqual(await ids(model.generate({ ...inputs, ...EIGHT })));
  });

  it('keeps all tokens of an image that has fewer than a call keeps', async () => {
    for (const keep of [17, [1000]])
      expect(await answer(singles[0], model.generate({ ...singles[0], ...EIGHT, desap: { keep } }))).toEqual([
        plain.singles[0],
      ]);
  });

  it('refuses prompts that do not fit their images', async () => {
    const { input_ids, attention_mask } = singles[0];
    const two = { input_ids, attention_mask, pixel_values: both.pixel_values };
    await expect(model.generate({ ...two, ...EIGHT })).rejects.toMatchObject({ code: 'ERR_SHAPE' });
    await expect(model.generate({ ...singles[0], desap: 5 })).rejects.toMatchObject({ code: 'ERR_VALUE' });
    const got = await answer(singles[0], model.generate({ ...singles[0], ...EIGHT, desap: { keep: 'all' } }));
    expect(got).toEqual([plain.singles[0]]);
  });
});
