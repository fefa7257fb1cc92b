/** Opening a model can be ended by a signal between any two of its sessions, and leaves none open. */
import { getEventListeners } from 'node:events';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { OrtModule } from '../../src/onnx/edit.js';
import {
  ClipText,
  LlavaNextVision,
  LlavaVision,
  openVisionModel,
  Phi3Vision,
  QwenVision,
  SiglipText,
  VideoLlavaVision,
} from '../../src/vision/index.js';
import { ROOT } from '../support.js';

const FAMILIES = join(ROOT, 'test/fixtures/families');
const clip = join(ROOT, 'models/tiny-clip');
const encoder = (folder: string) => join(folder, 'onnx/vision_encoder.onnx');
const [LLAVA, NEXT] = ['tiny-llava', 'tiny-llava-next'].map((name) => join(ROOT, 'models', name));
const family = (name: string) => join(FAMILIES, name);

type More = { readonly ort: OrtModule; readonly signal: AbortSignal };
const OPEN: Readonly<Record<string, (more: More) => Promise<AsyncDisposable>>> = {
  openVisionModel: (more) => openVisionModel(LLAVA, { clip, ...more }),
  LlavaVision: (more) => LlavaVision.open(encoder(LLAVA), { clip, ...more }),
  'LlavaVision, rows dropped in its tower': (more) =>
    LlavaVision.open(encoder(LLAVA), { clip, tower: { at: 1, keep: 0.5 }, taps: ['penultimate'], ...more }),
  'LlavaNextVision, with a glance': (more) =>
    LlavaNextVision.open(encoder(NEXT), { clip, tiles: { keep: 1, by: 'block' }, ...more }),
  Phi3Vision: (more) => Phi3Vision.open(encoder(family('phi3_v')), { clip: join(family('phi3_v'), 'clip'), ...more }),
  VideoLlavaVision: (more) =>
    VideoLlavaVision.open(encoder(family('video_llava')), { clip: join(family('video_llava'), 'clip'), ...more }),
  QwenVision: (more) => QwenVision.open(encoder(family('qwen2_vl')), more),
  'Idefics3, rows dropped in its tower': (more) =>
    openVisionModel(family('idefics3'), { tower: { at: 1, keep: 0.5 }, ...more }),
  ClipText: (more) => ClipText.open({ model: join(clip, 'onnx/text_model.onnx'), tokenizer: clip, ...more }),
  SiglipText: (more) => SiglipText.open(join(ROOT, 'test/fixtures/siglip'), more),
};

const reason = new Error('nobody waits any more');

/** The module, and how many of its sessions are open. */
function counted(made: (count: number) => void) {
  const sessions = { made: 0, open: 0 };
  const create = async (...given: Parameters<OrtModule['InferenceSession']['create']>) => {
    const session = await ort.InferenceSession.create(...given);
    const release = session.release.bind(session);
    sessions.open++;
    session.release = () => {
      sessions.open--;
      return release();
    };
    made(++sessions.made);
    return session;
  };
  return { ort: { InferenceSession: { create }, Tensor: ort.Tensor } as unknown as OrtModule, sessions };
}

const warn = process.emitWarning;
beforeAll(() => {
  process.emitWarning = () => {};
});
afterAll(() => {
  process.emitWarning = warn;
});

it.each(Object.entries(OPEN))(
  '%s',
  async (_, open) => {
    const whole = counted(() => {});
    const { signal } = new AbortController();
    await (await open({ ort: whole.ort, signal }))[Symbol.asyncDispose]();
    expect(whole.sessions.open).toBe(0);
    expect(getEventListeners(signal, 'abort')).toEqual([]);
    for (let at = 1; at <= whole.sessions.made; at++) {
      const control = new AbortController();
      const one = counted((made) => made === at && control.abort(reason));
      await expect(open({ ort: one.ort, signal: control.signal })).rejects.toMatchObject({
        ...{ name: 'DesapError', code: 'ERR_ABORTED', cause: reason },
      });
      expect(one.sessions).toEqual({ made: at, open: 0 });
    }
    const none = counted(() => {});
    const late = open({ ort: none.ort, signal: AbortSignal.abort(reason) });
    await expect(late).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: reason });
    expect(none.sessions.made).toBe(0);
    await expect(open({ ort: none.ort, signal: 'soon' as never })).rejects.toThrow(/signal: got 'soon'/);
  },
  120_000,
);

it('says nothing about the calls of the model', async () => {
  const control = new AbortController();
  await using text = await ClipText.open({
    ...{ model: join(clip, 'onnx/text_model.onnx'), tokenizer: clip, signal: control.signal },
  });
  control.abort(reason);
  await expect(text.encode('a red star')).resolves.toBeDefined();
});
