import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext, runInThisContext } from 'node:vm';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { afterAll, beforeEach, describe, expect, it } from 'vitest';
import { createCpuDriver, loadCpuAddon } from '../src/devices/cpu.js';
import { HostBuffer } from '../src/index.js';
import { floatToHalf } from '../src/tensor.js';
import { normal, randomHead, relativeError } from './support.js';

setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc') as () => void;

/** What `ArrayBuffer.prototype.transfer` does, which Node has from version 22 on. */
function detach(buffer: ArrayBuffer): void {
  setFlagsFromString('--allow-natives-syntax');
  runInThisContext('(buffer) => %ArrayBufferDetach(buffer)')(buffer);
  setFlagsFromString('--no-allow-natives-syntax');
}

const addon = loadCpuAddon();
const driver = createCpuDriver({ threads: 2 });
const weights = randomHead(1, { width: 32, heads: 2, projectionDim: 16 });
const head = await driver.createHead(weights);
afterAll(() => driver.dispose());

const request = { encoding: 'qq', intermediates: false } as const;
const text = { data: normal(3, 5 * 16), half: false, rows: 5, cols: 16 };
const question = {
  text,
  endOfText: 4,
  keep: 6,
  taskKeep: 3,
  alignment: 'fcma',
  lambda: 0.1,
  complement: 'saliency',
  distances: null,
  task: null,
  saliency: null,
  merge: true,
  features: null,
  maps: false,
  matrices: false,
} as const;
const matrix = (data: Float32Array | Uint16Array) => ({ data, half: data instanceof Uint16Array, rows: 17, cols: 32 });

/** Finalizers run when the event loop turns; an object that kept another alive needs a second collection. */
async function collect(): Promise<void> {
  for (let i = 0; i < 4; i++) {
    gc();
    await sleep(5);
  }
}

beforeEach(collect);

describe('HostBuffer', () => {
  it('is aligned to 64 bytes and as long as asked for', () => {
    for (const length of [1, 3, 64, 1000, 4096, 1_000_003]) {
      using buffer = HostBuffer.allocate(length);
      expect(buffer.address % 64n).toBe(0n);
      expect(buffer.byteLength).toBe(length);
      expect(buffer.arrayBuffer).toBe(buffer.arrayBuffer);
      expect(addon.addressOf(new Uint8Array(buffer.arrayBuffer))).toBe(buffer.address);
    }
  });

  it('is written through its views, which honour their offsets', () => {
    using buffer = HostBuffer.allocate(64);
    buffer.float32().fill(0);
    buffer.float32(8, 2).set([1, 2]);
    expect([...buffer.float32(4, 4)]).toEqual([0, 1, 2, 0]);
    expect(buffer.uint16(10, 1)[0]).toBe(0x3f80);
    expect(addon.addressOf(buffer.float32(8))).toBe(buffer.address + 8n);
    expect(buffer.float32()).toHaveLength(16);
    expect(buffer.float32(64)).toHaveLength(0);
  });

  it('makes onnxruntime tensors over itself', () => {
    using buffer = HostBuffer.forTensor('float32', [2, 3, 4]);
    expect(buffer.byteLength).toBe(96);
    const tensor = buffer.tensor('float32', [3, 4], 48);
    expect(tensor).toBeInstanceOf(Tensor);
    expect(tensor.dims).toEqual([3, 4]);
    expect(addon.addressOf(tensor.data as Float32Array)).toBe(buffer.address + 48n);
    using half = HostBuffer.forTensor('float16', [5]);
    expect(half.byteLength).toBe(10);
    expect(addon.addressOf(half.tensor('float16', [5]).data as never)).toBe(half.address);
  });

  it.each([
    ['no byte', () => HostBuffer.allocate(0), 'ERR_VALUE', /byteLength: got 0/],
    ['less than none', () => HostBuffer.allocate(-1), 'ERR_VALUE', /byteLength: got -1/],
    ['a fraction', () => HostBuffer.allocate(1.5), 'ERR_VALUE', /byteLength/],
    ['NaN', () => HostBuffer.allocate(Number.NaN), 'ERR_VALUE', /byteLength: got NaN/],
    ['a string', () => HostBuffer.allocate('64' as never), 'ERR_VALUE', /byteLength/],
    ['more than any address space', () => HostBuffer.allocate(2 ** 46 + 1), 'ERR_VALUE', /2\^46/],
    ['more than this machine has', () => HostBuffer.allocate(2 ** 46), 'ERR_OUT_OF_MEMORY', /70368744177664 bytes/],
    ['an unknown type', () => HostBuffer.forTensor('int8' as never, [1]), 'ERR_DTYPE', /type: got 'int8'/],
    ['an empty extent', () => HostBuffer.forTensor('float32', [2, 0]), 'ERR_SHAPE', /dims: got \[2, 0\]/],
  ])('refuses %s', (_, make, code, message) => {
    expect(make).toThrow(
      expect.objectContaining({ name: 'DesapError', code, message: expect.stringMatching(message) }),
    );
  });

  it('refuses views beyond its end and across its elements', () => {
    using buffer = HostBuffer.allocate(64);
    for (const make of [
      () => buffer.float32(2),
      () => buffer.float32(68),
      () => buffer.float32(-4),
      () => buffer.float32(0, 17),
      () => buffer.uint16(0, 33),
      () => buffer.tensor('float32', [17]),
    ])
      expect(make).toThrow(expect.objectContaining({ code: 'ERR_VALUE' }));
  });

  it('says that its memory went elsewhere', () => {
    const buffer = HostBuffer.allocate(64);
    detach(buffer.arrayBuffer);
    const detached = expect.objectContaining({ name: 'DesapError', code: 'ERR_DETACHED' });
    expect(() => buffer.float32()).toThrow(detached);
    expect(() => buffer.uint16()).toThrow(detached);
    expect(() => buffer.tensor('float32', [1])).toThrow(detached);
    buffer.dispose();
  });

  it('is no whole page where it is small, and then not kept', () => {
    const before = addon.hostMemory();
    const held = Array.from({ length: 100 }, (_, i) => HostBuffer.allocate(i + 1));
    expect(addon.hostMemory()).toMatchObject({ blocks: before.blocks + 100, bytes: before.bytes + 64 * 64 + 36 * 128 });
    for (const buffer of held) buffer.dispose();
    expect(addon.hostMemory()).toEqual(before);
  });

  it('is read in place', () => {
    using buffer = HostBuffer.allocate(64);
    expect(buffer.inPlace).toBe(true);
  });

  it('receives the output of an onnxruntime session in place', async () => {
    const session = await InferenceSession.create('models/tiny-llava/onnx/vision_encoder.onnx');
    const pixel_values = new Tensor('float32', normal(5, 3 * 96 * 96), [1, 3, 96, 96]);
    const { image_features } = await session.run({ pixel_values });
    const dims = [...image_features.dims];
    using buffer = HostBuffer.forTensor('float32', dims);
    buffer.float32().fill(Number.NaN);
    await session.run({ pixel_values }, { image_features: buffer.tensor('float32', dims) });
    expect(buffer.float32()).toEqual(image_features.data);

    // and the kernels read it there: no copy between the encoder and the analysis
    const llava = randomHead(2, { width: dims[2], heads: 4, projectionDim: 16, classToken: false });
    const encoder = await driver.createHead(llava);
    const hidden = { data: buffer.float32(), half: false, rows: dims[1], cols: dims[2] };
    const [analysis] = await encoder.analyze([hidden], request, false);
    expect(analysis.featuresAddress).toBe(buffer.address);
    analysis.dispose();
    encoder.dispose();
    await session.release();
  });
});

describe('zero-copy', () => {
  const data = normal(2, 17 * 32);

  it.each([
    ['asynchronous', false],
    ['synchronous', true],
  ])('an %s analysis reads a HostBuffer where it is', async (_, sync) => {
    using buffer = HostBuffer.forTensor('float32', [2, 17, 32]);
    buffer.float32().set(data);
    buffer.float32(17 * 32 * 4).set(data);
    const images = [matrix(buffer.float32(0, 544)), matrix(buffer.float32(544 * 4, 544))];
    const [first, second] = await head.analyze(images, request, sync);
    expect(first.featuresAddress).toBe(buffer.address);
    expect(second.featuresAddress).toBe(buffer.address + 544n * 4n);
    const [plain] = await head.analyze([matrix(data)], request, sync);
    expect(plain.featuresAddress).not.toBe(addon.addressOf(data));
    expect(second.patchEmbeddings()).toEqual(plain.patchEmbeddings());
    expect(await second.prune(question, sync)).toMatchObject(withoutTimings(await plain.prune(question, sync)));
    for (const analysis of [first, second, plain]) analysis.dispose();
  });

  it('float16 is widened inside the call', async () => {
    using buffer = HostBuffer.forTensor('float16', [17, 32]);
    buffer.uint16().set(Uint16Array.from(data, floatToHalf));
    const [half] = await head.analyze([matrix(buffer.uint16())], request, false);
    const [copy] = await head.analyze([matrix(buffer.uint16().slice())], request, true);
    expect(half.patchEmbeddings()).toEqual(copy.patchEmbeddings());
    const { tokens } = await half.prune(question, false);
    expect(tokens).toBeInstanceOf(Uint16Array);
    expect(tokens).toEqual((await copy.prune(question, true)).tokens);
    half.dispose();
    copy.dispose();
  });
});

describe('the pool', () => {
  it('gives a disposed block to the next buffer of its size', () => {
    const first = HostBuffer.allocate(100_000);
    const { address } = first;
    first.dispose();
    using second = HostBuffer.allocate(99_999);
    expect(second.address).toBe(address);
    using third = HostBuffer.allocate(99_999);
    expect(third.address).not.toBe(address);
  });

  it('counts blocks and bytes', () => {
    expect(addon.hostMemory()).toMatchObject({ blocks: 0, bytes: 0 });
    const buffers = [HostBuffer.allocate(10_000), HostBuffer.allocate(20_000)];
    expect(addon.hostMemory()).toMatchObject({ blocks: 2, bytes: 12_288 + 20_480 });
    for (const buffer of buffers) buffer.dispose();
    expect(addon.hostMemory()).toMatchObject({ blocks: 0, bytes: 0 });
    expect(addon.hostMemory().pooledBlocks).toBeGreaterThanOrEqual(2);
  });

  it('keeps at most 256 MiB', () => {
    for (let i = 0; i < 5; i++) HostBuffer.allocate(100_000_000 + i * 10_000).dispose();
    const { pooledBytes } = addon.hostMemory();
    expect(pooledBytes).toBeLessThanOrEqual(256 * 2 ** 20);
    expect(pooledBytes).toBeGreaterThan(200_000_000);
  });

  it('takes memory back from buffers that were forgotten', async () => {
    for (let i = 0; i < 10; i++) HostBuffer.allocate(10_000_000).float32()[0] = i;
    expect(addon.hostMemory().blocks).toBeGreaterThan(0);
    await collect();
    expect(addon.hostMemory()).toMatchObject({ blocks: 0, bytes: 0 });
  });

  it('does not grow in a synchronous loop', () => {
    for (let i = 0; i < 2000; i++) HostBuffer.allocate(4_000_000).dispose();
    expect(addon.hostMemory()).toMatchObject({ blocks: 0, bytes: 0 });
  });
});

describe('dispose', () => {
  it('detaches the memory and may be called again', () => {
    const buffer = HostBuffer.allocate(64);
    const view = buffer.float32();
    expect(buffer.disposed).toBe(false);
    buffer.dispose();
    buffer.dispose();
    expect(buffer.disposed).toBe(true);
    expect(view).toHaveLength(0);
    expect(buffer.byteLength).toBe(0);
    const disposed = expect.objectContaining({ code: 'ERR_DISPOSED' });
    expect(() => buffer.float32()).toThrow(disposed);
    expect(() => buffer.uint16()).toThrow(disposed);
    expect(() => buffer.tensor('float32', [1])).toThrow(disposed);
  });

  it('leaves the memory to an analysis that reads it', async () => {
    const data = normal(4, 17 * 32);
    const buffer = HostBuffer.forTensor('float32', [17, 32]);
    buffer.float32().set(data);
    const [analysis] = await head.analyze([matrix(buffer.float32())], request, false);
    const before = await analysis.prune(question, false);
    buffer.dispose();
    expect(addon.hostMemory().blocks).toBe(1);
    using other = HostBuffer.forTensor('float32', [17, 32]);
    other.float32().fill(0);
    expect(await analysis.prune(question, false)).toMatchObject(withoutTimings(before));
    analysis.dispose();
    expect(addon.hostMemory().blocks).toBe(1);
  });

  it('leaves the memory to calls in flight', async () => {
    const data = normal(4, 600 * 512);
    const buffer = HostBuffer.forTensor('float32', [600, 512]);
    buffer.float32().set(data);
    const x = { data: buffer.float32(), half: false, rows: 600, cols: 512 };
    const args = { q: x, k: x, v: x, heads: 8 };
    const calls = [driver.run('attention', args, false), driver.run('attention', args, false)];
    buffer.dispose();
    using other = HostBuffer.forTensor('float32', [600, 512]);
    other.float32().fill(Number.NaN);
    const [first, second] = await Promise.all(calls);
    const copy = { ...x, data };
    const want = driver.run('attention', { q: copy, k: copy, v: copy, heads: 8 }, true) as Float32Array;
    expect(relativeError(first, want)).toBe(0);
    expect(relativeError(second, want)).toBe(0);
  });

  it('of forgotten analyses gives the memory back too', async () => {
    await (async () => {
      const buffer = HostBuffer.forTensor('float32', [17, 32]);
      buffer.float32().set(normal(4, 17 * 32));
      await head.analyze([matrix(buffer.float32())], request, false);
      buffer.dispose();
    })();
    expect(addon.hostMemory().blocks).toBe(1);
    await collect();
    expect(addon.hostMemory()).toMatchObject({ blocks: 0, bytes: 0 });
  });
});

function withoutTimings<T extends { timings: unknown }>({ timings: _, ...rest }: T) {
  return rest;
}
