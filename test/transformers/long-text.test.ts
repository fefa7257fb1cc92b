/** Long questions of attached models: what is left of one asks as its embeddings do. */
import { join } from 'node:path';
import { type PreTrainedModel, type Processor, RawImage } from '@huggingface/transformers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { attach, type CallOptions, type PrunedImage } from '../../src/transformers/index.js';
import { ClipText, openVisionModel, type VisionModel } from '../../src/vision/index.js';
import { ROOT } from './family-cases.js';
import { type Inputs, int64, load } from './support.js';

const LONG = 'is there a big red star near the small blue house in the top-left corner ?';

let pruned: readonly PrunedImage[] = [];
const onPruned = (images: readonly PrunedImage[]) => {
  pruned = images;
};
const indices = () => [...pruned[0].indices];

describe('an attached LLaVA', () => {
  let model: PreTrainedModel;
  let processor: Processor;
  beforeAll(async () => {
    ({ model, processor } = await load('models', 'tiny-llava'));
  });
  afterAll(() => model.dispose());

  it('asks by the words that are left', async () => {
    const how = { longText: 'filter', filter: { maxTokens: 6 } } as const;
    const clip = 'models/tiny-clip';
    await using text = await ClipText.open({ model: join(clip, 'onnx/text_model.onnx'), tokenizer: clip, ...how });
    await using plain = await ClipText.open({ model: join(clip, 'onnx/text_model.onnx'), tokenizer: clip });
    await using _ = await attach(model, { clip, model: 'tiny-llava', keep: 16, onPruned, ...how });
    const inputs = await processor(await RawImage.read('models/eval/demo/02.png'), `<image>${LONG}<ans>`);
    const kept = async (desap: CallOptions) => {
      await model.generate({ ...inputs, max_new_tokens: 1, desap } as never);
      return indices();
    };
    const asked = await kept({});
    expect(asked).toEqual(await kept({ question: await text.encode(LONG) }));
    expect(asked).not.toEqual(await kept({ question: await plain.encode(LONG) }));
  });
});

describe('an attached model with an encoder of its own', () => {
  const folder = join(ROOT, 'paligemma');
  const question = 'what is the red dog of the big cat on the ball';
  let model: PreTrainedModel;
  let processor: Processor;
  let vision: VisionModel;
  beforeAll(async () => {
    ({ model, processor } = await load(ROOT, 'paligemma'));
    vision = await openVisionModel(folder, { longText: 'filter', filter: { maxTokens: 4 } });
  });
  afterAll(async () => {
    await Promise.all([model.dispose(), vision.dispose()]);
  });

  it('asks by the words that are left', async () => {
    await using _ = await attach(model, {
      ...{ model: folder, keep: 5, onPruned },
      ...{ longText: 'filter', filter: { maxTokens: 4 } },
    });
    const { image_token_index: image, vision_config } = model.config as never as Record<string, never>;
    const { image_size: side, patch_size: patch } = vision_config as Record<string, number>;
    const tokens = [...Array((side / patch) ** 2).fill(image as number), 5, 6];
    const prepare = processor.image_processor as unknown as (images: unknown) => Promise<Inputs>;
    const data = Uint8ClampedArray.from({ length: side * side * 3 }, (__, i) => (i * 37) % 251);
    const { pixel_values } = await prepare([new RawImage(data, side, side, 3)]);
    const dims = [1, tokens.length];
    const inputs = { input_ids: int64(tokens, dims), attention_mask: int64(Array(tokens.length).fill(1), dims) };
    const kept = async (asked: CallOptions['question']) => {
      await model.generate({ ...inputs, pixel_values, max_new_tokens: 1, desap: { question: asked } } as never);
      return indices();
    };
    const text = await vision.encodeQuestion(question);
    expect(text).toHaveProperty('filtered');
    expect(await kept(question)).toEqual(await kept(text));
  });
});
