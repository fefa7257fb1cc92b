import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  AutoModelForImageTextToText,
  AutoProcessor,
  env,
  type PreTrainedModel,
  type Processor,
  RawImage,
  type Tensor,
} from '@huggingface/transformers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { attach, type PrunedImage } from '../../src/transformers/index.js';
import { LlavaVision } from '../../src/vision/index.js';
import { close, type ExpectedItem, items, keep } from '../expected-items.js';
import { Editable } from '../onnx/editable.js';
import { halfPrecision } from '../onnx/variants.js';

describe('the example model through ordinary Transformers.js code', () => {
  let processor: Processor;
  let model: PreTrainedModel;
  let detach: () => Promise<void>;
  let seen: readonly PrunedImage[] = [];
  beforeAll(async () => {
    env.allowRemoteModels = false;
    env.localModelPath = 'models';
    processor = await AutoProcessor.from_pretrained('tiny-llava');
    model = await AutoModelForImageTextToText.from_pretrained('tiny-llava', { dtype: 'fp32' });
    detach = await attach(model, {
      clip: 'models/tiny-clip',
      model: 'tiny-llava',
      keep,
      onPruned: (images) => {
        seen = images;
      },
    });
  });
  afterAll(async () => {
    await detach?.();
    await model?.dispose();
  });

  /** What a user writes, with or without pruning. */
  async function answer({ image, question }: ExpectedItem, more = {}): Promise<string> {
    const inputs = await processor(await RawImage.read(join('models/eval', image)), `<image>${question}<ans>`);
    const output = (await model.generate({ ...inputs, max_new_tokens: 4, ...more })) as Tensor;
    const answers = output.slice(null, [inputs.input_ids.dims[1], null]);
    return processor.batch_decode(answers, { skip_special_tokens: true })[0].trim();
  }

  it('keeps the patches and gives the answers that PyTorch gave', async () => {
    for (const each of items) {
      const { item, kept, source, pruned, full } = each;
      expect(await answer(each), `item ${item}, pruned`).toBe(pruned);
      const [{ indices, source: from, sequence }] = seen;
      expect(sequence).toBe(0);
      if (close.has(item)) {
        expect(kept.filter((index) => indices.includes(index)).length).toBeGreaterThanOrEqual(kept.length - 2);
      } else {
        expect([...indices], `item ${item}`).toEqual(kept);
        expect([...from], `item ${item}`).toEqual(source);
      }
      expect(await answer(each, { desap: { keep: 'all' } }), `item ${item}, all tokens`).toBe(full);
      expect(await answer(each, { desap: { keep: 144 } }), `item ${item}, 144 tokens`).toBe(full);
    }
  });
});

it('finds the file of the dtype that was loaded: float16 weights in the vision encoder alone', async () => {
  const root = await mkdtemp(join(tmpdir(), 'desap-half-'));
  const folder = join(root, 'half');
  await cp('models/tiny-llava', folder, { recursive: true });
  const half = await Editable.from(await readFile(join(folder, 'onnx', 'vision_encoder.onnx')));
  const [name] = half.outputs;
  halfPrecision(half);
  // The output is a Cast to float32 now, and has to have its name back.
  half.producer(name)!.outputs[0] = 'half';
  Object.assign(half.producer(half.outputs[0])!, { inputs: ['half'], outputs: [name] });
  half.outputs = [name];
  await writeFile(join(folder, 'onnx', 'vision_encoder_fp16.onnx'), half.bytes());
  await rm(join(folder, 'onnx', 'vision_encoder.onnx'));
  const processor = await AutoProcessor.from_pretrained(folder);
  const dtype = { vision_encoder: 'fp16', embed_tokens: 'fp32', decoder_model_merged: 'fp32' } as const;
  const model = await AutoModelForImageTextToText.from_pretrained(folder, { dtype });
  const [{ image, question, kept }] = items;
  const inputs = await processor(await RawImage.read(join('models/eval', image)), `<image>${question}<ans>`);
  const plain = (await model.generate({ ...inputs })) as Tensor;
  let indices: readonly number[] = [];
  const detach = await attach(model, {
    clip: 'models/tiny-clip',
    model: folder,
    keep: 144,
    onPruned: ([first]) => {
      indices = [...first.indices];
    },
  });
  expect(((await model.generate({ ...inputs })) as Tensor).tolist()).toEqual(plain.tolist());
  await model.generate({ ...inputs, desap: { keep: 16 } });
  expect(kept.filter((index) => indices.includes(index)).length).toBeGreaterThanOrEqual(14);
  await detach();
  expect(((await model.generate({ ...inputs })) as Tensor).tolist()).toEqual(plain.tolist());
  await model.dispose();
  await rm(root, { recursive: true });
});

it('drops rows inside the tower, and all tokens are still all', async () => {
  env.allowRemoteModels = false;
  env.localModelPath = 'models';
  const processor = await AutoProcessor.from_pretrained('tiny-llava');
  const model = await AutoModelForImageTextToText.from_pretrained('tiny-llava', { dtype: 'fp32' });
  const seen: PrunedImage[] = [];
  const clip = { clip: 'models/tiny-clip' };
  const tower = { at: 1, keep: 0.25 };
  const onPruned = (images: readonly PrunedImage[]) => seen.push(...images);
  const detach = await attach(model, { ...clip, model: 'tiny-llava', tower, keep: 16, onPruned });
  const plain = await LlavaVision.open('models/tiny-llava/onnx/vision_encoder.onnx', { ...clip, tower });
  try {
    for (const { image, question, full } of items.slice(0, 4)) {
      const inputs = await processor(await RawImage.read(join('models/eval', image)), `<image>${question}<ans>`);
      const answer = async (more = {}) => {
        const output = (await model.generate({ ...inputs, max_new_tokens: 4, ...more })) as Tensor;
        const words = output.slice(null, [inputs.input_ids.dims[1], null]);
        return processor.batch_decode(words, { skip_special_tokens: true })[0].trim();
      };
      await answer();
      const [{ indices, dropped, assignment }] = seen.splice(0);
      const wanted = await plain.prune(inputs.pixel_values, question, { keep: 16 });
      expect([indices, dropped, assignment]).toEqual([wanted.indices, wanted.dropped, wanted.assignment]);
      expect(dropped).toHaveLength(108);
      expect(await answer({ desap: { keep: 'all' } })).toBe(full);
      await answer({ desap: { keep: 144 } });
      expect(seen.splice(0)[0].indices).toHaveLength(36);
    }
  } finally {
    await detach();
    await Promise.all([plain.dispose(), model.dispose()]);
  }
});
