import { AutoModelForImageTextToText, AutoProcessor, env, RawImage, TextStreamer } from '@huggingface/transformers';
import { expect, it } from 'vitest';
import { attach } from '../../src/transformers/index.js';

env.localModelPath = 'models';
env.allowRemoteModels = false;

it('a signal ends a generation between two steps, and detach waits for the step under way', async () => {
  const processor = await AutoProcessor.from_pretrained('tiny-llava');
  const model = await AutoModelForImageTextToText.from_pretrained('tiny-llava', { dtype: 'fp32' });
  const detach = await attach(model, { clip: 'models/tiny-clip', model: 'models/tiny-llava', keep: 16 });
  const inputs = await processor(
    await RawImage.read('models/eval/images/000.png'),
    '<image>what color is the star ?<ans>',
  );
  const how = { ...inputs, min_new_tokens: 20, max_new_tokens: 20 };
  const control = new AbortController();
  const steps: number[] = [];
  class Steps extends TextStreamer {
    override put(): void {
      steps.push(steps.length);
      if (steps.length === 3) control.abort(new Error('enough'));
    }
    override end(): void {}
  }
  const generate = (signal: AbortSignal) =>
    model.generate({ ...how, streamer: new Steps(processor.tokenizer as never), desap: { signal } } as never);
  await expect(generate(control.signal)).rejects.toMatchObject({
    code: 'ERR_ABORTED',
    cause: { message: 'enough' },
  });
  await detach();
  expect(steps.length).toBeLessThan(6);
  await expect(model.generate(how as never)).resolves.toBeDefined();
  await model.dispose();
});
