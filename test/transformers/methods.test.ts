/** Methods in a model that Transformers.js loaded: what they keep there is what they keep over plain onnxruntime. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { PreTrainedModel } from '@huggingface/transformers';
import { Tensor } from 'onnxruntime-common';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { type AttachOptions, attach, type CallOptions, type PrunedImage } from '../../src/transformers/index.js';
import { LlavaVision } from '../../src/vision/index.js';
import { ROOT } from './family-cases.js';
import { IMAGE_TOKEN, PATCHES, type SmallLlava, writeLlava } from './small/llava.js';
import { answer, EIGHT, embed, FRESH, type Inputs, load, photo } from './support.js';

let root: string;
let folders: SmallLlava;
let model: PreTrainedModel;
let inputs: Inputs;
let pixels: Tensor;
const QUESTION = 'what color is the star ?';

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'desap-methods-'));
  folders = await writeLlava(root, FRESH);
  const loaded = await load(root, 'small-llava');
  model = loaded.model;
  inputs = await loaded.processor(await photo(1), `<image>${QUESTION}<ans>`);
  pixels = new Tensor('float32', inputs.pixel_values.data as Float32Array, [1, 3, 32, 32]);
});
afterAll(async () => {
  await model.dispose();
  await rm(root, { recursive: true });
});

/** What was kept by each of some calls of the attached model. */
async function keptBy(options: Partial<AttachOptions>, calls: readonly CallOptions[]): Promise<PrunedImage[]> {
  const kept: PrunedImage[] = [];
  const onPruned = ([image]: readonly PrunedImage[]) => {
    kept.push(image);
  };
  const detach = await attach(model, { clip: folders.clip, model: folders.llava, onPruned, ...options });
  try {
    for (const desap of calls) await answer(inputs, model.generate({ ...inputs, ...EIGHT, desap }));
    return kept;
  } finally {
    await detach();
  }
}

it('keeps what a vision model keeps, by the method of every call and by that of one', async () => {
  const vision = await LlavaVision.open(join(folders.llava, 'onnx', 'vision_encoder.onnx'), {
    clip: folders.clip,
    taps: ['penultimate'],
  });
  const calls: CallOptions[] = [
    {},
    { methodOptions: { contextualShare: 0.5 } },
    { method: 'uniform', keep: 3 },
    { method: 'desap', taskShare: 1 },
    { method: 'cdpruner', methodOptions: { relevance: 'positive' } },
  ];
  const kept = await keptBy({ method: 'visionzip', keep: 5 }, calls);
  const wanted = [];
  for (const { methodOptions, method = 'visionzip', keep = 5, taskShare } of calls)
    wanted.push(await vision.prune(pixels, QUESTION, { method, methodOptions, keep: keep as number, taskShare }));
  for (const [i, { indices, assignment }] of kept.entries()) {
    expect(indices, `call ${i}`).toEqual(wanted[i].indices);
    expect(assignment, `call ${i}`).toEqual(wanted[i].assignment);
    expect(kept[i].choice, `call ${i}`).toEqual(wanted[i].choice);
  }
  await vision.dispose();
});

it('dart has the words of the prompt among its pivots, unless it is given others', async () => {
  const vision = await LlavaVision.open(join(folders.llava, 'onnx', 'vision_encoder.onnx'), { clip: folders.clip });
  const prompt = Array.from(inputs.input_ids.data as BigInt64Array, Number);
  const rows = async (ids: readonly number[]) => {
    const { data, dims } = await embed(model, ids);
    return { textEmbeddings: { data: data as Float32Array, dims: dims.slice(1) }, pivots: 1, textPivots: 6 };
  };
  const [words, others] = [await rows(prompt.filter((id) => id !== IMAGE_TOKEN)), await rows([5, 6, 7, 8, 9, 10])];
  const calls = [{ pivots: 1, textPivots: 6 }, others].map((methodOptions) => ({ methodOptions }));
  const kept = await keptBy({ method: 'dart', keep: 8 }, calls);
  for (const [i, methodOptions] of [words, others].entries()) {
    const { indices } = await vision.prune(pixels, null, { method: 'dart', keep: 8, methodOptions });
    expect(kept[i].indices, `call ${i}`).toEqual(indices);
  }
  await vision.dispose();
});

it('an adaptive method needs no amount, and takes none', async () => {
  const adaptive = { method: 'trim', methodOptions: { adaptive: true } } as const;
  const [every] = await keptBy(adaptive, [{}]);
  const [one] = await keptBy({ keep: 5 }, [adaptive]);
  expect(one.indices).toEqual(every.indices);
  expect(one.indices.length).toBeLessThan(PATCHES);
  await expect(keptBy({ ...adaptive, keep: 5 }, [])).rejects.toThrow(/^keep: got a budget beside method: 'trim'/);
});

it('defaults of desap have no part in a method of a call', async () => {
  const [kept] = await keptBy({ keep: 5, taskShare: 0.3, lambda: 2 }, [{ method: 'divprune' }]);
  expect(kept.indices).toHaveLength(5);
});

it.each<[string, Partial<AttachOptions>, RegExp]>([
  ['an unknown method', { method: 'fastv' as never }, /^method: got 'fastv'/],
  [
    'an option that it does not have',
    { method: 'uniform', methodOptions: { seed: 1 } },
    /^methodOptions: got the unknown/,
  ],
  ['options of no method', { methodOptions: {} }, /^methodOptions: got options of no method/],
  [
    'an order of tokens, which stand in their places',
    { method: 'uniform', layout: 'public' } as never,
    /^(options|desap): got the unknown option 'layout'/,
  ],
  ['what it has no part in', { method: 'uniform', taskShare: 0.5 }, /^taskShare: got 0.5 beside method: 'uniform'/],
])('refuses %s', async (_, options, message) => {
  await expect(keptBy({ keep: 4, ...options }, [])).rejects.toThrow(message);
  await expect(keptBy({ keep: 4 }, [options as CallOptions])).rejects.toThrow(message);
});

it('refuses a tap that it was not opened with, and one budget for a prompt', async () => {
  await expect(keptBy({ keep: 4 }, [{ method: 'fastervlm' }])).rejects.toThrow(
    /reads the tap 'penultimate', wanted a model that is opened with taps/,
  );
  expect(await keptBy({ keep: 4, taps: ['penultimate'] }, [{ method: 'fastervlm' }])).toHaveLength(1);
  await expect(keptBy({ keep: 4, allocation: 'prompt' }, [{ method: 'uniform' }])).rejects.toThrow(
    /^method: got 'uniform', wanted 'desap'/,
  );
});

it('an encoder that is no tower of CLIP is refused for a tap at once', async () => {
  const other = (await load(ROOT, 'qwen2_vl')).model;
  const folder = `${ROOT}/qwen2_vl`;
  await expect(attach(other, { model: folder, keep: 4, method: 'tome' })).rejects.toThrow(
    /^method: got 'tome', which reads the tap 'penultimate', wanted a method that reads features only/,
  );
  await other.dispose();
});
