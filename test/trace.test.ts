/** What listeners of `desap:call` are told. */
import { tracingChannel } from 'node:diagnostics_channel';
import { afterEach, expect, it } from 'vitest';
import { type CallEvent, Pruner } from '../src/index.js';
import { ImageProcessor, LlavaVision } from '../src/vision/index.js';
import * as small from './fixtures/native.mjs';

const channel = tracingChannel<string, CallEvent>('desap:call');
let ended: CallEvent[] = [];
let failed: CallEvent[] = [];
const listeners = {
  start: () => {},
  end: () => {},
  asyncStart: () => {},
  asyncEnd: (event: CallEvent) => ended.push(event),
  error: (event: CallEvent) => failed.push(event),
};
const listen = () => {
  [ended, failed] = [[], []];
  channel.subscribe(listeners as never);
};
afterEach(() => channel.unsubscribe(listeners as never));

const tensor = (rows: number, cols: number) => ({ data: small.wave(rows * cols), dims: [rows, cols] });
const STAGES = ['waiting', 'normalize', 'project', 'attention', 'saliency', 'readOut', 'align', 'select', 'merge'];

it('a call of the pruner, with the stages of all its images', async () => {
  const pruner = await Pruner.load(small.smallHead(), { device: 'cpu' });
  const silent = await pruner.prune(tensor(17, 32), tensor(5, 16), { keep: 4 });
  listen();
  const results = await pruner.pruneBatch([tensor(17, 32), tensor(9, 32)], tensor(5, 16), { keep: 4 });
  const [{ call, timings }] = ended;
  expect(ended).toHaveLength(1);
  expect(call).toBe('Pruner.pruneBatch');
  expect(Object.keys(timings ?? {}).sort()).toEqual([...STAGES].sort());
  expect(timings?.align).toBeCloseTo(results[0].timings.align + results[1].timings.align, 9);
  expect(results[0].indices).toEqual(silent.indices);
  await expect(pruner.prune(tensor(17, 32), tensor(5, 16), { keep: 99 })).rejects.toThrow();
  expect(failed.map(({ call }) => call)).toEqual(['Pruner.prune']);
  expect(failed[0]).toMatchObject({ error: { code: 'ERR_VALUE' } });
});

it('the calls of a vision model, those within a call before it', async () => {
  const vision = await LlavaVision.open('models/tiny-llava/onnx/vision_encoder.onnx', { clip: 'models/tiny-clip' });
  const pixels = await (await ImageProcessor.open('models/tiny-llava')).process('models/eval/images/000.png');
  listen();
  const { timings } = await vision.prune(pixels, 'what is the large thing ?', { keep: 16 });
  expect(ended.map(({ call }) => call)).toEqual([
    ...['VisionModel.encode', 'ClipText.encode', 'VisionModel.encodeQuestion'],
    ...['Pruner.analyzeBatch', 'ImageAnalysis.pruneBatch', 'EncodedImage.prune', 'VisionModel.prune'],
  ]);
  const { stages, ...outer } = timings;
  expect(ended.at(-1)?.timings).toEqual({ ...stages, ...outer });
  await vision.dispose();
});
