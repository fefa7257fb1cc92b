/** The examples of serving: the server under a short load, and what listens to it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { trace } from '@opentelemetry/api';
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Server } from '../../bench/serve/client.js';
import type { PoolHealth } from '../../src/server/index.js';
import { ImageProcessor, LlavaVision } from '../../src/vision/index.js';

const [{ pruned, full, question, image }] = JSON.parse(await readFile('models/expected.json', 'utf8')).items;
const picture = (await readFile(`models/eval/${image}`)).toString('base64');

describe('examples/server', () => {
  let child: ChildProcess;
  let lines: AsyncIterator<string>;
  let url: string;
  beforeAll(async () => {
    child = spawn(process.execPath, ['examples/server/main.mjs', '0'], { stdio: ['ignore', 'pipe', 'inherit'] });
    lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
    url = (await lines.next()).value;
  });
  afterAll(() => void child?.kill('SIGKILL'));

  const post = (body: object, signal?: AbortSignal) =>
    fetch(`${url}/answer`, {
      ...{ method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) },
      ...(signal && { signal }),
    });

  const health = async () => (await (await fetch(`${url}/health`)).json()) as PoolHealth;

  it('answers as the model does, from 16 tokens and from all', async () => {
    expect(await (await post({ image: picture, question })).text()).toBe(pruned);
    expect(await (await post({ image: picture, question, keep: 'all' })).text()).toBe(full);
  });

  it.each([
    ['a body without a question', { image: picture }],
    ['a picture that is none', { image: 'AAAA', question }],
    ['a question that is too long', { image: picture, question: 'x'.repeat(3000) }],
    ['a budget that is none', { image: picture, question, keep: 0 }],
    ['more tokens than there are', { image: picture, question, keep: 500 }],
  ])('refuses %s', async (_, body) => {
    const reply = await post(body);
    expect(reply.status).toBe(400);
    expect(await reply.json()).toMatchObject({ code: expect.any(String), message: expect.any(String) });
  });

  it('loses nothing of 200 requests at once, lets go of clients that leave, and stays awake', async () => {
    const leaving = AbortSignal.timeout(50);
    const gone = Array.from({ length: 8 }, () => post({ image: picture, question }, leaving).catch(() => null));
    const asked = Array.from({ length: 200 }, async () => {
      const reply = await post({ image: picture, question });
      return `${reply.status} ${await reply.text()}`;
    });
    expect(await health()).toMatchObject({ state: 'open' });
    expect(new Set(await Promise.all(asked))).toEqual(new Set([`200 ${pruned}`]));
    await Promise.all(gone);
    await expect.poll(async () => (await health()).running).toBe(0);
  });

  it('answers what it has when it is told to end', async () => {
    const before = (await health()).answered;
    const asked = Array.from({ length: 20 }, async () => (await post({ image: picture, question })).text());
    const arrived = async () => {
      const { answered, running, waiting } = await health();
      return answered - before + running + waiting;
    };
    await expect.poll(arrived).toBe(20);
    child.kill('SIGTERM');
    expect(new Set(await Promise.all(asked))).toEqual(new Set([pruned]));
    const [code] = await once(child, 'exit');
    expect(code).toBe(0);
    expect((await lines.next()).value).toMatch(/^answered \d+$/);
  });
});

it.each([
  ['pool', '2'],
  ['main', '1'],
])('the server of the benchmark answers in its form %s', async (...args) => {
  const server = await Server.start(args);
  expect(await server.ask({ image: picture, question, keep: 16 })).toBe(pruned);
  expect(await server.ask({ image: picture, question, keep: 'all' })).toBe(full);
  const { latencies, failed, load } = await server.run(() => ({ image: picture, question, keep: 16 }), { inFlight: 8 });
  expect([latencies.length, failed]).toEqual([8, 0]);
  expect(load.loop.max).toBeGreaterThan(0);
  await server[Symbol.asyncDispose]();
});

describe('examples/telemetry', () => {
  let vision: LlavaVision;
  let pixels: Awaited<ReturnType<ImageProcessor['process']>>;
  beforeAll(async () => {
    vision = await LlavaVision.open('models/tiny-llava/onnx/vision_encoder.onnx', { clip: 'models/tiny-clip' });
    pixels = await (await ImageProcessor.open('models/tiny-llava')).process(`models/eval/${image}`);
  });
  afterAll(() => vision?.dispose());

  it('counts stages for Prometheus', async () => {
    const { prometheus } = await import('../../examples/telemetry/prometheus.mjs' as string);
    const registry = prometheus();
    await vision.prune(pixels, question, { keep: 16 });
    await vision.prune(pixels, question, { keep: 0 }).catch(() => {});
    const text: string = await registry.metrics();
    for (const stage of ['waiting', 'vision', 'analyze', 'prune', 'projector', 'attention', 'merge'])
      expect(text).toContain(`desap_stage_seconds_count{call="VisionModel.prune",stage="${stage}"} 1`);
    expect(text).toContain('desap_call_seconds_count{call="VisionModel.encode"} 2');
    expect(text).toContain('desap_errors_total{call="VisionModel.prune",code="ERR_VALUE"} 1');
  });

  it('makes spans for OpenTelemetry, one within the other', async () => {
    const exporter = new InMemorySpanExporter();
    trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }));
    const { spans } = await import('../../examples/telemetry/opentelemetry.mjs' as string);
    spans();
    await vision.prune(pixels, question, { keep: 16 });
    const made = exporter.getFinishedSpans();
    const named = (name: string) => made.find((span) => span.name === `desap ${name}`)!;
    const whole = named('VisionModel.prune');
    expect(whole.parentSpanContext).toBeUndefined();
    for (const part of ['VisionModel.encode', 'EncodedImage.prune'])
      expect(named(part).parentSpanContext?.spanId).toBe(whole.spanContext().spanId);
    expect(whole.attributes['desap.vision_ms']).toBeGreaterThan(0);
  });
});
