/** Questions that are encoded in a thread of their own: the compiled one, in `dist`. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import * as ort from 'onnxruntime-node';
import { expect, it } from 'vitest';
import { ImageProcessor, LlavaVision, openVisionModel, SiglipText } from '../../src/vision/index.js';
import { threadedOrt } from '../../src/vision/session-thread.js';
import { ROOT } from '../support.js';

const FOLDER = join(ROOT, 'models/tiny-llava');
const ENCODER = join(FOLDER, 'onnx/vision_encoder.onnx');
const CLIP = join(ROOT, 'models/tiny-clip');
const IDEFICS3 = join(ROOT, 'test/fixtures/families/idefics3');
const QUESTION = 'what color is the ring ?';
const pixels = await (await ImageProcessor.open(FOLDER)).process(join(ROOT, 'models/eval/images/000.png'));

const open = (more: object) => LlavaVision.open(ENCODER, { clip: CLIP, keep: 16, ...more });

/** The module, with sessions that block the thread for so long whenever they run on images, as large towers do. */
function blocking(milliseconds: number): typeof ort {
  const create = async (...given: Parameters<typeof ort.InferenceSession.create>) => {
    const session = await ort.InferenceSession.create(...given);
    const run = session.run.bind(session) as (...all: unknown[]) => Promise<never>;
    session.run = async (feeds: Record<string, ort.Tensor>, ...more: unknown[]) => {
      if (Object.values(feeds)[0].dims.length === 4)
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
      return run(feeds, ...more);
    };
    return session;
  };
  return { ...ort, InferenceSession: { create } } as unknown as typeof ort;
}

it('gives the same bits as the text tower of this thread', async () => {
  await using here = await open({ text: 'here' });
  await using beside = await open({ text: 'worker' });
  expect([here.questionsBeside, beside.questionsBeside]).toEqual([false, true]);
  for (const text of [QUESTION, 'what is the large thing ? '.repeat(30)])
    expect(await beside.encodeQuestion(text)).toEqual(await here.encodeQuestion(text));
  const [one, other] = [await here.prune(pixels, QUESTION), await beside.prune(pixels, QUESTION)];
  expect({ ...other, timings: null }).toEqual({ ...one, timings: null });
});

it('encodes the question of prune() while the tower blocks this thread', async () => {
  await using vision = await open({ text: 'worker', ort: blocking(2000) });
  const { timings } = await vision.prune(pixels, QUESTION);
  expect(timings.vision).toBeGreaterThan(2000);
  expect(timings.text).toBeLessThan(1000);
});

it('does not ask for a method that does not', async () => {
  await using vision = await open({ text: 'worker' });
  const asked: string[] = [];
  vision.encodeQuestion = async (question) => {
    asked.push(question);
    throw new Error('nobody wants it');
  };
  await vision.prune(pixels, QUESTION, { method: 'random' });
  expect(asked).toEqual([]);
});

it('tells what is wrong with a question as this thread would', async () => {
  const said: unknown[] = [];
  for (const text of ['here', 'worker'] as const) {
    await using vision = await open({ text, longText: 'error' });
    for (const question of ['', 'what is the large thing ? '.repeat(30)])
      said.push(await vision.prune(pixels, question).catch(({ code, message }) => ({ code, message })));
  }
  expect(said.slice(2)).toEqual(said.slice(0, 2));
  expect(said).toEqual(said.map(() => expect.objectContaining({ code: 'ERR_VALUE' })));
});

it('encodes the words of a SigLIP’s question', async () => {
  const folder = join(ROOT, 'test/fixtures/siglip');
  await using here = await SiglipText.open(folder, { text: 'words' });
  await using beside = await SiglipText.open(folder, { text: 'words', ort: await threadedOrt() });
  const question = 'what colour is the big dog';
  expect(await beside.encode(question)).toEqual(await here.encode(question));
});

it('gives the words of ONNX Runtime, and goes on', async () => {
  const { InferenceSession, Tensor } = await threadedOrt();
  await expect(InferenceSession.create(new Uint8Array(8))).rejects.toThrow(/protobuf|Load model/i);
  await using vision = await open({ text: 'worker' });
  const session = (vision.text as unknown as { session: ort.InferenceSession }).session;
  await expect(session.run({ nothing: new Tensor('float32', [1], [1]) })).rejects.toThrow(/input/i);
  await expect(vision.encodeQuestion(QUESTION)).resolves.toMatchObject({ endOfText: 7 });
});

it.each([
  ['another place', () => open({ text: 'there' }), "text: got 'there', wanted 'here' | 'worker'"],
  [
    'a model without a text tower',
    () => openVisionModel(IDEFICS3, { keep: 4, text: 'worker' }),
    "text: got 'worker' for a model without a text tower, wanted 'here', or task: 'siglip' beside it",
  ],
])('refuses %s', async (_, opening, message) => {
  await expect(opening()).rejects.toMatchObject({ name: 'DesapError', code: 'ERR_VALUE', message });
});

it('does not keep a process, which waits for what it has asked', async () => {
  const script = `
    import { LlavaVision } from ${JSON.stringify(join(ROOT, 'dist/vision/index.js'))};
    const vision = await LlavaVision.open(${JSON.stringify(ENCODER)}, { clip: ${JSON.stringify(CLIP)}, text: 'worker' });
    const { endOfText } = await vision.encodeQuestion(${JSON.stringify(QUESTION)});
    console.log(endOfText);`;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', script]);
  expect(stdout).toBe('7\n');
});
