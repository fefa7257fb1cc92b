/** `attach` with a text tower in a thread of its own (the compiled one, in `dist`): the same ids, from the same tokens. */
import { AutoModelForImageTextToText, AutoProcessor, env, RawImage, type Tensor } from '@huggingface/transformers';
import { expect, it } from 'vitest';
import { type AttachOptions, attach, type PrunedImage } from '../../src/transformers/index.js';

env.localModelPath = 'models';
env.allowRemoteModels = false;

it('gives the same ids and tokens as with the text tower in this thread', async () => {
  const processor = await AutoProcessor.from_pretrained('tiny-llava');
  const model = await AutoModelForImageTextToText.from_pretrained('tiny-llava', { dtype: 'fp32' });
  const questions = ['what color is the star ?', 'what is the large thing ?'];
  const inputs = await processor(
    await Promise.all(['000', '001'].map((name) => RawImage.read(`models/eval/images/${name}.png`))),
    questions.map((question) => `<image>${question}<ans>`),
    { padding: true },
  );
  async function answered(text: AttachOptions['text']) {
    const kept: PrunedImage[] = [];
    const detach = await attach(model, {
      ...{ clip: 'models/tiny-clip', model: 'models/tiny-llava', keep: 16, text },
      onPruned: (images) => void kept.push(...images),
    });
    const output = (await model.generate({ ...inputs, max_new_tokens: 4 } as never)) as Tensor;
    await detach();
    return { ids: output.tolist(), indices: kept.map(({ indices }) => [...indices]) };
  }
  const here = await answered('here');
  expect(here.indices.map(({ length }) => length)).toEqual([16, 16]);
  expect(await answered('worker')).toEqual(here);
  await model.dispose();
}, 60_000);
