/** Every asynchronous call can be ended by a signal: what has not begun is taken out, and what has begun is let go. */
import { getEventListeners } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, describe, expect, it } from 'vitest';
import {
  BlockHead,
  DesapError,
  formatBlock,
  formatHead,
  ImageAnalysis,
  loadBlock,
  loadHead,
  openBackend,
  Pruner,
  saveBlock,
  saveHead,
} from '../src/index.js';
import { confirmHead, confirmTower, extractHead, openGraph, readTower, towerGraph } from '../src/onnx/index.js';
import { AnyresImageProcessor, ClipText, ImageProcessor, LlavaVision } from '../src/vision/index.js';
import * as small from './fixtures/native.mjs';

const tensor = (rows: number, cols: number) => ({ data: small.wave(rows * cols), dims: [rows, cols] });
const hidden = tensor(17, 32);
const text = tensor(5, 16);
const question = 'what is the large thing ?';
const ENCODER = 'models/tiny-llava/onnx/vision_encoder.onnx';

const pruner = await Pruner.load(small.smallHead(), { device: 'cpu', threads: 1 });
const image = await pruner.analyze(hidden);
const block = await BlockHead.load(small.smallBlock(), { device: 'cpu', threads: 1 });
const backend = openBackend({ device: 'cpu', threads: 1 });
const parts = { patchEmbeddings: tensor(16, 16), saliency: small.wave(16), features: tensor(16, 8) };
const head = small.smallHead();
const visionModel = 'models/tiny-clip/onnx/vision_model.onnx';
const folder = mkdtempSync(join(tmpdir(), 'desap-abort-'));
afterAll(() => rmSync(folder, { recursive: true }));
const vision = await LlavaVision.open(ENCODER, {
  clip: 'models/tiny-clip',
  keep: 16,
  threads: 1,
});
const photo = 'models/eval/images/000.png';
const processor = await ImageProcessor.open('models/tiny-llava');
const anyres = await AnyresImageProcessor.open('models/tiny-llava-next');
const pixelValues = await processor.process(photo);
const [encoded] = await vision.encode({ pixelValues });
const clip = await ClipText.open({ model: 'models/tiny-clip/onnx/text_model.onnx', tokenizer: 'models/tiny-clip' });

const CALLS: Readonly<Record<string, (signal: AbortSignal) => Promise<unknown>>> = {
  'Pruner.analyze': (signal) => pruner.analyze(hidden, { signal }),
  'Pruner.analyzeBatch': (signal) => pruner.analyzeBatch([hidden], { signal }),
  'Pruner.prune': (signal) => pruner.prune(hidden, text, { keep: 4, signal }),
  'Pruner.prune by another method': (signal) => pruner.prune(hidden, text, { keep: 4, method: 'uniform', signal }),
  'Pruner.pruneBatch': (signal) => pruner.pruneBatch([hidden], text, { keep: 4, signal }),
  'ImageAnalysis.prune': (signal) => image.prune(text, { keep: 4, signal }),
  'ImageAnalysis.pruneBatch': (signal) => ImageAnalysis.pruneBatch([image], text, { keep: 4 }, { signal }),
  'ImageAnalysis.from': (signal) => ImageAnalysis.from(parts, backend, { signal }),
  'BlockHead.analyze': (signal) => block.analyze(hidden, { signal }),
  'BlockHead.analyzeBatch': (signal) => block.analyzeBatch([{ hidden }], { signal }),
  'a kernel': (signal) => backend.unitRows({ x: hidden }, { signal }),
  'VisionModel.encode': (signal) => vision.encode({ pixelValues }, undefined, { signal }),
  'VisionModel.encodeQuestion': (signal) => vision.encodeQuestion(question, { signal }),
  'VisionModel.prune': (signal) => vision.prune({ pixelValues }, question, { signal }),
  'VisionModel.pruneImages': (signal) => vision.pruneImages([encoded], [question], undefined, { signal }),
  'VisionModel.mapImages': (signal) => vision.mapImages([encoded], [question], undefined, { signal }),
  'EncodedImage.prune': (signal) => encoded.prune(question, { signal }),
  'EncodedImage.all': (signal) => encoded.all({ signal }),
  'EncodedImage.analysis': (signal) => encoded.analysis({ signal }),
  'LlavaVision.project': (signal) => vision.project(tensor(3, 128), { signal }),
  'ClipText.encode': (signal) => clip.encode(question, { signal }),
  'Pruner.load': async (signal) => (await Pruner.load(head, { device: 'cpu', threads: 1 }, { signal })).dispose(),
  'BlockHead.load': async (signal) => (await BlockHead.load(small.smallBlock(), backend, { signal })).dispose(),
  loadHead: (signal) => loadHead(formatHead(head), { signal }),
  saveHead: (signal) => saveHead(head, join(folder, 'head.safetensors'), { signal }),
  loadBlock: (signal) => loadBlock(formatBlock(small.smallBlock()), { signal }),
  saveBlock: (signal) => saveBlock(small.smallBlock(), join(folder, 'block.safetensors'), { signal }),
  'ImageProcessor.open': (signal) => ImageProcessor.open('models/tiny-llava', { signal }),
  'ImageProcessor.process': (signal) => processor.process(photo, { signal }),
  'ImageProcessor.video': (signal) => processor.video([photo], { signal }),
  'ImageProcessor.rgb': (signal) => processor.rgb(photo, { signal }),
  'AnyresImageProcessor.open': (signal) => AnyresImageProcessor.open('models/tiny-llava-next', { signal }),
  'AnyresImageProcessor.process': (signal) => anyres.process(photo, { signal }),
  extractHead: (signal) => extractHead({ visionModel }, { signal }),
  confirmHead: async (signal) => confirmHead(ort, visionModel, await extractHead({ visionModel }), { signal }),
  confirmTower: (signal) => confirmTower(ort, ENCODER, visionModel, { signal }),
  openGraph: async (signal) => (await openGraph(ort, towerGraph(readTower(ENCODER)), undefined, { signal })).release(),
};

/** Some tenths of a second. */
const long = small.longJob();
const longRows = { data: long.q.data, dims: [long.q.rows, long.q.cols] };
const LONG = { q: longRows, k: longRows, v: longRows, heads: long.heads };

const reason = new Error('the client has gone');
const aborted = (cause: unknown) => expect.objectContaining({ name: 'DesapError', code: 'ERR_ABORTED', cause });

describe.each(Object.entries(CALLS))('%s', (_, call) => {
  it('does not begin for a signal that has ended', async () => {
    await expect(call(AbortSignal.abort(reason))).rejects.toEqual(aborted(reason));
  });

  it('is ended while it is under way, and the next one is right', async () => {
    const control = new AbortController();
    const work = call(control.signal);
    control.abort(reason);
    await expect(work).rejects.toEqual(aborted(reason));
    await call(new AbortController().signal);
  });

  it('leaves nothing with a signal that lives on', async () => {
    const { signal } = new AbortController();
    await call(signal);
    await new Promise(setImmediate);
    expect(getEventListeners(signal, 'abort')).toEqual([]);
  });

  it('refuses what is no signal', async () => {
    await expect(call('soon' as never)).rejects.toThrow(/signal: got 'soon', wanted an AbortSignal/);
  });
});

it('one signal ends many calls, as of a server that shuts down, and Node warns of no leak', async () => {
  const warnings: Error[] = [];
  const warned = (warning: Error) => void warnings.push(warning);
  process.on('warning', warned);
  const control = new AbortController();
  const call = () => vision.prune({ pixelValues }, question, { signal: control.signal });
  const work = Promise.allSettled(Array.from({ length: 20 }, call));
  await new Promise(setImmediate);
  expect(getEventListeners(control.signal, 'abort').length).toBe(1);
  control.abort(reason);
  for (const one of await work) expect(one).toEqual({ status: 'rejected', reason: aborted(reason) });
  await new Promise(setImmediate);
  process.off('warning', warned);
  expect(warnings).toEqual([]);
});

it('an object without removeEventListener is no signal', async () => {
  const signal = { aborted: false, addEventListener: () => {} } as never;
  await expect(pruner.analyze(hidden, { signal })).rejects.toMatchObject({ code: 'ERR_VALUE' });
});

it('says why, of a signal of its own time too', async () => {
  const signal = AbortSignal.timeout(1);
  await new Promise((resolve) => setTimeout(resolve, 20));
  await expect(pruner.analyze(hidden, { signal })).rejects.toThrow('the call was aborted: The operation was aborted');
});

describe('the queue of a device', () => {
  /** The order in which calls end that are made while the device is busy. */
  async function order(ended: readonly number[]) {
    const device = openBackend({ device: 'cpu', threads: 1 });
    const busy = device.attention(LONG);
    const controls = Array.from({ length: 4 }, () => new AbortController());
    const ends: string[] = [];
    const calls = controls.map(({ signal }, i) =>
      device.unitRows({ x: hidden }, { signal }).then(
        () => ends.push(`${i}`),
        ({ code }: DesapError) => ends.push(`${i} ${code}`),
      ),
    );
    for (const i of ended) controls[i].abort();
    await new Promise(setImmediate);
    const early = [...ends];
    await Promise.all([busy.then(() => ends.push('busy')), ...calls]);
    device.dispose();
    return { early, ends };
  }

  it('lets go of calls that have not begun, and takes the others in their order', async () => {
    const { early, ends } = await order([1, 2]);
    expect(early).toEqual(['1 ERR_ABORTED', '2 ERR_ABORTED']);
    expect(ends).toEqual(['1 ERR_ABORTED', '2 ERR_ABORTED', 'busy', '0', '3']);
  });

  it('says how long a call waited, apart from its work', async () => {
    const start = performance.now();
    const [first, second] = await Promise.all([image.prune(text, { keep: 4 }), image.prune(text, { keep: 4 })]);
    const whole = performance.now() - start;
    for (const { timings } of [first, second]) {
      expect(timings.waiting).toBeGreaterThanOrEqual(0);
      expect(timings.waiting).toBeLessThan(whole);
    }
    const busy = pruner.backend.attention(LONG);
    const behind = await image.prune(text, { keep: 4 });
    await busy;
    const { waiting, align, select, merge } = behind.timings;
    expect(waiting).toBeGreaterThan(10 * (align + select + merge));
  });
});

it('a deadline is a signal', async () => {
  const signal = AbortSignal.timeout(1);
  await new Promise((resolve) => setTimeout(resolve, 5));
  await expect(image.prune(text, { keep: 4, signal })).rejects.toEqual(
    aborted(expect.objectContaining({ name: 'TimeoutError' })),
  );
});

it('what all questions of an image share outlives the call that asked first', async () => {
  const [other] = await vision.encode({ pixelValues });
  const control = new AbortController();
  const first = other.prune(question, { signal: control.signal });
  const second = other.prune(question);
  setImmediate(() => control.abort());
  await expect(first).rejects.toEqual(aborted(expect.anything()));
  expect((await second).indices).toEqual((await encoded.prune(question)).indices);
  other.dispose();
});

it('an image may be disposed of while a call that was ended still runs', async () => {
  const [other] = await vision.encode({ pixelValues });
  const control = new AbortController();
  const call = other.prune(question, { signal: control.signal });
  control.abort();
  other.dispose();
  await expect(call).rejects.toBeInstanceOf(DesapError);
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect((await encoded.prune(question)).indices).toHaveLength(16);
});

it('one signal may end many calls, with one listener', async () => {
  const control = new AbortController();
  const { signal } = control;
  const calls = Array.from({ length: 20 }, () => backend.attention(LONG, { signal }));
  expect(getEventListeners(signal, 'abort')).toHaveLength(1);
  control.abort(reason);
  for (const call of calls) await expect(call).rejects.toEqual(aborted(reason));
  // The one that had begun ends by itself.
  await expect.poll(() => getEventListeners(signal, 'abort')).toEqual([]);
});
