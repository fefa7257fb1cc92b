import { readdirSync } from 'node:fs';
import { expect, it } from 'vitest';
import { HostBuffer, Pruner } from '../../src/index.js';
import { Lifetime } from '../../src/lifetime.js';
import { Tensor } from '../../src/tensor.js';
import { ClipText, compact, ImageProcessor, LlavaVision } from '../../src/vision/index.js';
import { smallHead } from '../fixtures/native.mjs';

const LLAVA = 'models/tiny-llava';
const CLIP = 'models/tiny-clip';
const IMAGE = 'models/eval/images/000.png';
const QUESTION = 'what is the large thing ?';

const disposed = (what: string) =>
  expect.objectContaining({ name: 'DesapError', code: 'ERR_DISPOSED', message: `${what}: used after dispose()` });
const pixels = await (await ImageProcessor.open(LLAVA)).process(IMAGE);

const openVision = () => LlavaVision.open(`${LLAVA}/onnx/vision_encoder.onnx`, { clip: CLIP, keep: 16 });
const openText = () => ClipText.open({ model: `${CLIP}/onnx/text_model.onnx`, tokenizer: CLIP });

interface Opened {
  dispose(): Promise<void>;
}
const cases: [string, () => Promise<Opened>, ((opened: never) => Promise<unknown>)[]][] = [
  [
    'LlavaVision',
    openVision,
    [
      (vision: LlavaVision) => vision.prune(pixels, QUESTION),
      (vision: LlavaVision) => vision.encode(pixels),
      (vision: LlavaVision) => vision.encodeQuestion(QUESTION),
    ],
  ],
  ['ClipText', openText, [(text: ClipText) => text.encode(QUESTION)]],
];

it.each(cases)(
  '%s: calls under way end well, later ones are refused, and it may be said twice',
  async (what, open, calls) => {
    const one = await open();
    const running = calls.map((call) => call(one as never));
    const ends = [one.dispose(), one.dispose()];
    for (const call of calls) await expect(call(one as never)).rejects.toEqual(disposed(what));
    const settled = await Promise.allSettled(running);
    expect(settled.map(({ status }) => status)).toEqual(calls.map(() => 'fulfilled'));
    await Promise.all([...ends, one.dispose()]);
    for (const call of calls) await expect(call(one as never)).rejects.toEqual(disposed(what));
  },
);

it.each(cases)('%s: may be disposed of before it is used', async (what, open, [call]) => {
  const one = await open();
  await one.dispose();
  await one.dispose();
  await expect(call(one as never)).rejects.toEqual(disposed(what));
});

it('an explicit dispose within await using is enough', async () => {
  await using vision = await openVision();
  await using text = await openText();
  await Promise.all([vision.dispose(), text.dispose()]);
});

it('an encoded image', async () => {
  const vision = await openVision();
  const [image] = await vision.encode(pixels);
  expect(image.patchStates.dims).toEqual([144, 128]);
  const running = [image.prune(QUESTION), image.prune('what is it ?')];
  const all = image.all();
  image.dispose();
  image.dispose();
  for (const call of [() => image.prune(QUESTION), () => image.all(), () => image.analysis()])
    await expect(call()).rejects.toEqual(disposed('LlavaImage'));
  for (const { indices } of await Promise.all(running)) expect(indices).toHaveLength(16);
  expect((await all).dims).toEqual([1, 144, 128]);
  expect(() => image.patchStates).toThrow(disposed('LlavaImage'));

  const [other] = await vision.encode(pixels);
  const last = other.prune(QUESTION);
  await vision.dispose();
  expect((await last).indices).toHaveLength(16);
  await expect(other.prune(QUESTION)).rejects.toEqual(disposed('LlavaVision'));
  await expect(vision.project({ data: new Float32Array(128), dims: [1, 128] })).rejects.toEqual(
    disposed('LlavaVision'),
  );
  other.dispose();
});

it('images of one call, each by itself', async () => {
  await using vision = await openVision();
  const both = new Tensor('float32', Float32Array.from([...pixels.data, ...pixels.data] as number[]), [2, 3, 96, 96]);
  const [first, second] = await vision.encode(both);
  const wanted = (await second.prune(QUESTION)).indices;
  first.dispose();
  expect((await second.prune(QUESTION)).indices).toEqual(wanted);
  await expect(first.prune(QUESTION)).rejects.toEqual(disposed('LlavaImage'));
  second.dispose();
});

it('gives the sessions back', async () => {
  const threads = () => (process.platform === 'linux' ? readdirSync('/proc/self/task').length : 0);
  await (await openVision()).dispose();
  const before = threads();
  for (let i = 0; i < 3; i++) {
    const vision = await openVision();
    await Promise.all([vision.prune(pixels, QUESTION), vision.dispose()]);
  }
  expect(threads()).toBeLessThanOrEqual(before + 2);
});

it('what a vision tower does not run is told apart', async () => {
  await using vision = await openVision();
  const zeros = (dims: number[], type: 'float32' | 'int32' = 'float32') => {
    const length = dims.reduce((product, extent) => product * extent, 1);
    return new Tensor(
      type as 'float32',
      type === 'int32' ? (new Int32Array(length) as never) : new Float32Array(length),
      dims,
    );
  };
  const refused = (code: string, message: RegExp) =>
    expect.objectContaining({ code, message: expect.stringMatching(message) });
  await expect(vision.encode(zeros([1, 3, 90, 96]))).rejects.toEqual(
    refused('ERR_SHAPE', /^pixelValues: got float32 \[1, 3, 90, 96\], which the vision tower does not take: /),
  );
  await expect(vision.encode(zeros([1, 3, 96, 96], 'int32'))).rejects.toEqual(
    refused('ERR_DTYPE', /^pixelValues: got int32 in Int32Array, wanted float32/),
  );
  // A size that was seen before is written in place: the same words.
  await vision.encode(pixels);
  await expect(vision.encode(zeros([1, 3, 96, 96], 'int32'))).rejects.toEqual(
    refused('ERR_DTYPE', /^pixelValues: got int32/),
  );
  await expect(vision.project({ data: new Float32Array(64), dims: [1, 64] })).rejects.toEqual(
    refused('ERR_SHAPE', /^rows.dims: got \[1, 64\], wanted \[rows, 128\]/),
  );
  expect((await vision.prune(pixels, QUESTION)).indices).toHaveLength(16);
});

it.each<[string, () => unknown]>([
  ['HostBuffer.allocate', async () => HostBuffer.allocate(64, null as never)],
  ['Pruner.load', () => Pruner.load(smallHead(), null as never)],
  ['LlavaVision.open', () => LlavaVision.open(`${LLAVA}/onnx/vision_encoder.onnx`, null as never)],
  ['ClipText.open', () => ClipText.open(null as never)],
  ['compact', async () => compact(null as never)],
  ['LlavaVision.prune', async () => (await shared).prune(pixels, QUESTION, null as never)],
])('%s refuses null for options', async (_, call) => {
  await expect(call()).rejects.toEqual(
    expect.objectContaining({ code: 'ERR_VALUE', message: 'options: got null, wanted an object of options' }),
  );
});
const shared = openVision();

it('Lifetime: a call on its way is let through, a call of someone else is not', async () => {
  const life = new Lifetime('Thing');
  const order: string[] = [];
  const inner = () => life.call(async () => order.push('inner'));
  const outer = life.call(async () => {
    await Promise.resolve();
    await inner();
  });
  const end = life.end(() => order.push('freed'));
  await expect(inner()).rejects.toEqual(disposed('Thing'));
  await Promise.all([outer, end]);
  expect(order).toEqual(['inner', 'freed']);
  expect(() => life.check()).toThrow(disposed('Thing'));
  expect(life.end(() => order.push('again'))).toBe(end);
});

it('objects that were used and forgotten make no promise slower', async () => {
  const promises = async () => {
    const start = performance.now();
    for (let i = 0; i < 5000; i++) await null;
    return performance.now() - start;
  };
  await promises();
  const before = await promises();
  for (let i = 0; i < 3000; i++) await new Lifetime('thing').call(async () => {});
  // With a storage for each of them Node takes hundreds of times as long.
  expect(await promises()).toBeLessThan(20 * before + 20);
});
