import {
  AutoModelForImageTextToText,
  AutoProcessor,
  env,
  RawImage,
  type Tensor,
  TextStreamer,
} from '@huggingface/transformers';
import * as ort from 'onnxruntime-node';
import { expect, it, vi } from 'vitest';
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

it('a signal ends attach between two sessions, and the model is as it was', async () => {
  const processor = await AutoProcessor.from_pretrained('tiny-llava');
  const model = await AutoModelForImageTextToText.from_pretrained('tiny-llava', { dtype: 'fp32' });
  const inputs = await processor(
    await RawImage.read('models/eval/images/000.png'),
    '<image>what color is the star ?<ans>',
  );
  const answer = async () => ((await model.generate({ ...inputs, max_new_tokens: 4 } as never)) as Tensor).tolist();
  const plain = await answer();
  const create = ort.InferenceSession.create.bind(ort.InferenceSession) as (...all: unknown[]) => Promise<never>;
  const sessions = { made: 0, open: 0 };
  let control = new AbortController();
  let last = Number.POSITIVE_INFINITY;
  const spy = vi.spyOn(ort.InferenceSession, 'create').mockImplementation(async (...all: unknown[]) => {
    const session: ort.InferenceSession = await create(...all);
    const release = session.release.bind(session);
    sessions.open++;
    session.release = () => {
      sessions.open--;
      return release();
    };
    if (++sessions.made === last) control.abort(new Error('enough'));
    return session;
  });
  const attached = () =>
    attach(model, { clip: 'models/tiny-clip', model: 'models/tiny-llava', keep: 16, signal: control.signal });
  try {
    const detach = await attached();
    const all = sessions.made;
    await detach();
    const own = model.sessions.vision_encoder;
    expect(all).toBeGreaterThan(3);
    for (last = 1; last <= all; last++) {
      Object.assign(sessions, { made: 0, open: 0 });
      control = new AbortController();
      await expect(attached()).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: { message: 'enough' } });
      expect(sessions).toEqual({ made: last, open: 0 });
    }
    expect(await answer()).toEqual(plain);
    expect(model.sessions.vision_encoder).toBe(own);
  } finally {
    spy.mockRestore();
    await model.dispose();
  }
}, 120_000);
