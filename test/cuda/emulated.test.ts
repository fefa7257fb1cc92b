/** CUDA as the package offers it, over the emulator, which pretends whatever driver, GPUs and faults a test asks for. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import * as desap from '../../src/index.js';
import {
  EMULATED,
  embeddings,
  normal,
  normalTensor,
  randomBlock,
  randomHead,
  relativeError,
  values,
} from '../support.js';

const { BlockHead, HostBuffer, Pruner } = desap;

// The emulator reads this file again at every call of the runtime.
const folder = mkdtempSync(join(tmpdir(), 'desap-emulated-'));
const control = join(folder, 'control');
process.env.DESAP_CUDA_ADDON = EMULATED;
process.env.DESAP_SIMT_CONTROL = control;
/** What holds from now on; counting begins anew, and a dead GPU works again. */
const pretend = (...lines: string[]) => writeFileSync(control, lines.map((line) => `${line}\n`).join(''));
beforeEach(() => pretend());
afterAll(() => rmSync(folder, { recursive: true }));

const CUDA = { device: 'cuda' } as const;
const head = randomHead(1, { width: 32, heads: 2, projectionDim: 16 });
const hidden = normalTensor(2, 17, 32);
const text = normalTensor(3, 5, 16);
const keep = 4;
const failure = (code: desap.DesapErrorCode, message = /./) =>
  expect.objectContaining({ name: 'DesapError', code, message: expect.stringMatching(message) });

/** The package as a process finds it that starts now. */
async function fresh(): Promise<typeof desap> {
  vi.resetModules();
  return import('../../src/index.js');
}
afterEach(() => vi.resetModules());

describe('what devices() finds', () => {
  it('a GPU', async () => {
    expect(desap.devices()[1]).toEqual({
      device: 'cuda:0',
      available: true,
      description: 'emulated device 0, compute capability 9.0, 8 GiB',
      name: 'emulated device 0',
      capability: '9.0',
      memory: 2 ** 33,
    });
  });

  it('several GPUs, and opens the one that is asked for', async () => {
    pretend('devices 3');
    const { devices, openBackend } = await fresh();
    expect(devices().map(({ device }) => device)).toEqual(['cpu', 'cuda:0', 'cuda:1', 'cuda:2', 'reference']);
    for (const [device, name] of [
      ['cuda', 'emulated device 0, cuda:0, fp32'],
      ['cuda:2', 'emulated device 2, cuda:2, fp32'],
    ] as const) {
      using backend = openBackend({ device });
      expect(backend.deviceDescription).toBe(name);
      expect([...backend.sync.topK({ scores: Float32Array.of(1, 3, 2), k: 2 })]).toEqual([1, 2]);
    }
    expect(() => openBackend({ device: 'cuda:3' })).toThrow(
      expect.objectContaining({
        code: 'ERR_DEVICE_UNAVAILABLE',
        message: expect.stringMatching(/^cuda:3: there are 3 CUDA devices to use here: cuda:0 \(.*cuda:2 /),
      }),
    );
  });

  it.each([
    ['no driver', ['driver 0'], /^no NVIDIA driver$/],
    ['an old driver', ['driver 12080'], /^NVIDIA driver too old: it supports CUDA 12\.8, this build needs 13\.0$/],
    ['no GPU', ['devices 0'], /^no CUDA device$/],
    ['an old GPU', ['capability 7.5'], /^no device of a supported compute capability .*: emulated device 0 \(7\.5\)$/],
  ])('%s', async (_, lines, reason) => {
    pretend(...lines);
    const { devices, openBackend, Pruner, HostBuffer } = await fresh();
    expect(devices()[1]).toEqual({ device: 'cuda', available: false, reason: expect.stringMatching(reason) });
    const message = new RegExp(`^cuda: ${reason.source.slice(1)}`);
    const unavailable = expect.objectContaining({
      code: 'ERR_DEVICE_UNAVAILABLE',
      message: expect.stringMatching(message),
    });
    expect(() => openBackend(CUDA)).toThrow(unavailable);
    await expect(Pruner.load(head, CUDA)).rejects.toEqual(unavailable);
    using pruner = await Pruner.load(head);
    expect(pruner.backend.device).toBe('cpu');
    expect(pruner.backend.fallback).toMatch(message);
    using buffer = HostBuffer.allocate(100);
    expect(buffer.pinned).toBe(false);
  });
});

describe('auto', () => {
  it('takes the GPU', async () => {
    using pruner = await Pruner.load(head, { precision: 'bf16' });
    expect(pruner.backend.device).toBe('cuda:0');
    expect(pruner.backend.fallback).toBeNull();
    expect(pruner.precision).toBe('bf16');
    expect(pruner.deviceDescription).toBe('emulated device 0, cuda:0, bf16');
  });

  it('takes the CPU where the GPU has no memory left, and says so', async () => {
    pretend('memory 1000');
    await expect(Pruner.load(head, CUDA)).rejects.toEqual(failure('ERR_OUT_OF_MEMORY'));
    using pruner = await Pruner.load(head);
    expect(pruner.backend.device).toBe('cpu');
    expect(pruner.backend.fallback).toMatch(/^cuda: an allocation failed/);
  });

  it('takes the CPU whichever call of the driver fails', async () => {
    const codes = new Set<string>();
    for (let nth = 1; nth <= 40; nth++) {
      pretend(`fail call ${nth} 999`);
      let opened: desap.Pruner;
      try {
        opened = await Pruner.load(head, CUDA);
      } catch (error) {
        const { code, message } = error as desap.DesapError;
        codes.add(code);
        pretend(`fail call ${nth} 999`, 'seed 2');
        opened = await Pruner.load(head);
        expect(opened.backend.device).toBe('cpu');
        // The head is made on a thread of its own: which of two calls is the nth one, and so what fails, can change.
        if (code === 'ERR_DEVICE_UNAVAILABLE') expect(opened.backend.fallback).toBe(message);
        else expect(opened.backend.fallback).toMatch(/^cuda: the device (failed|is lost): cudaErrorUnknown$/);
      }
      opened.dispose();
    }
    // Lost: when it cannot even be told whether the GPU has ended its work.
    expect([...codes]).toEqual(expect.arrayContaining(['ERR_DEVICE_UNAVAILABLE', 'ERR_DEVICE_FAILED']));
    for (const code of codes) expect(code).toMatch(/^ERR_DEVICE_(UNAVAILABLE|FAILED|LOST)$/);
  });

  it('takes the CPU for a head that the GPU does not take', async () => {
    const wide = randomHead(4, { width: 136, heads: 1, projectionDim: 16 });
    await expect(Pruner.load(wide, CUDA)).rejects.toEqual(failure('ERR_VALUE', /head size/));
    using pruner = await Pruner.load(wide);
    expect(pruner.backend.device).toBe('cpu');
    expect(pruner.backend.fallback).toMatch(/^cuda: .*head size/);
    expect(pruner.pruneSync(normalTensor(2, 17, 136), text, { keep }).indices).toHaveLength(keep);
  });

  it('takes the CPU for a block that the GPU does not take', async () => {
    const wide = randomBlock(4, { width: 136, heads: 1, norm: 'rms' });
    await expect(BlockHead.load(wide, CUDA)).rejects.toEqual(failure('ERR_VALUE', /head size/));
    using block = await BlockHead.load(wide);
    expect(block.device).toBe('cpu');
    expect(block.backend.fallback).toMatch(/^cuda: .*head size/);
    using image = block.analyzeSync(normalTensor(2, 17, 136));
    expect(image.saliency).toHaveLength(17);
  });

  it('takes the CPU for rows that the GPU does not take', async () => {
    const wide = randomHead(4, { width: 32, heads: 2, projectionDim: 16385 });
    const message = /\(projectionDim beyond 16384\)/;
    await expect(Pruner.load(wide, CUDA)).rejects.toEqual(failure('ERR_VALUE', message));
    using backend = desap.openBackend(CUDA);
    const rows = normalTensor(2, 2, 16385);
    const parts = { patchEmbeddings: rows, saliency: normal(3, 2), features: normalTensor(4, 2, 16385) };
    await expect(desap.ImageAnalysis.from(parts, backend)).rejects.toEqual(
      failure('ERR_VALUE', /\(patchEmbeddings of more than 16384 columns\)/),
    );
    expect(() => backend.sync.unitRows({ x: rows })).toThrow(failure('ERR_VALUE', /\(x of more than 16384 columns\)/));
    for (const make of [desap.ImageAnalysis.from, desap.ImageAnalysis.fromSync]) {
      using image = await make(parts);
      expect(image.pruneSync(normalTensor(5, 3, 16385), { keep: 1 }).indices).toHaveLength(1);
    }
  });

  it('gives the next device what the call was given, whatever became of it', async () => {
    const patches = 65537; // more than a GPU takes
    const parts = () => ({
      patchEmbeddings: normalTensor(2, patches, 2),
      global: normal(3, 2),
      saliency: normal(4, patches),
      features: normalTensor(5, patches, 2),
    });
    const ask = (image: desap.ImageAnalysis) => {
      const { tokens, indices } = image.pruneSync(normalTensor(6, 3, 2), { keep });
      image.dispose();
      return [tokens.data, indices];
    };
    await expect(desap.ImageAnalysis.from(parts(), CUDA)).rejects.toEqual(failure('ERR_VALUE', /\(rows\)/));
    const want = ask(desap.ImageAnalysis.fromSync(parts(), { device: 'cpu' }));
    const given = parts();
    const making = desap.ImageAnalysis.from(given);
    for (const data of [given.patchEmbeddings.data, given.global, given.saliency, given.features.data])
      (data as Float32Array).fill(7);
    expect(ask(await making)).toEqual(want);
    using buffer = HostBuffer.forTensor('float32', [patches, 2]);
    buffer.float32().set(values(parts().features));
    expect(
      ask(await desap.ImageAnalysis.from({ ...parts(), features: buffer.tensor('float32', [patches, 2]) })),
    ).toEqual(want);

    pretend('memory 1000');
    const weights = randomHead(1, { width: 32, heads: 2, projectionDim: 16 });
    const loading = Pruner.load(weights);
    weights.q.weight.fill(0);
    using pruner = await loading;
    expect(pruner.device).toBe('cpu');
    using cpu = await Pruner.load(head, { device: 'cpu' });
    expect(pruner.analyzeSync(hidden).saliency()).toEqual(cpu.analyzeSync(hidden).saliency());
  });

  it('does not hide a wrong option', async () => {
    await expect(Pruner.load(head, { precision: 'exact' as never })).rejects.toEqual(failure('ERR_VALUE'));
  });
});

describe('a fault', () => {
  const hidden = normalTensor(2, 97, 32);
  /** Everything that computes. */
  const calls: [string, (pruner: desap.Pruner) => unknown][] = [
    ['analyze', (pruner) => pruner.analyze(hidden).then((image) => image.dispose())],
    ['analyzeSync', (pruner) => pruner.analyzeSync(hidden).dispose()],
    ['prune', (pruner) => pruner.prune(hidden, text, { keep })],
    ['pruneBatchSync', (pruner) => pruner.pruneBatchSync([hidden, hidden], text, { keep, maps: true })],
    ['attention', (pruner) => pruner.backend.attention({ q: hidden, k: hidden, v: hidden, heads: 2 })],
    ['merge', (pruner) => pruner.backend.sync.merge({ features: hidden, kept: Int32Array.of(1, 2) })],
  ];
  const attempt = async (call: (pruner: desap.Pruner) => unknown, pruner: desap.Pruner) => call(pruner);
  const works = (pruner: desap.Pruner) =>
    expect(pruner.pruneSync(hidden, text, { keep }).indices).toEqual(want.indices);
  let want: desap.PruneResult;
  beforeEach(async () => {
    using reference = await Pruner.load(head, { device: 'reference' });
    want = reference.pruneSync(hidden, text, { keep });
  });

  it.each(calls)('out of memory: %s says so, and works again', async (_, call) => {
    let failures = 0;
    // An allocation may go well at the second attempt, when memory that was kept for later has been given back.
    for (let [nth, done] = [1, 0]; done < 3; nth++) {
      pretend();
      using pruner = await Pruner.load(head, CUDA);
      pretend(`fail allocation ${nth} 2`);
      const outcome = await attempt(call, pruner)
        .then(() => null)
        .catch((error) => error);
      if (outcome !== null) expect(outcome).toEqual(failure('ERR_OUT_OF_MEMORY'));
      if (outcome === null) done++;
      else failures++;
      pretend();
      works(pruner);
    }
    expect(failures).toBeGreaterThan(0);
  });

  it.each(calls)('a launch that fails: %s says so, and works again', async (_, call) => {
    using pruner = await Pruner.load(head, CUDA);
    pretend('fail launch 1 701');
    await expect(attempt(call, pruner)).rejects.toEqual(failure('ERR_DEVICE_FAILED', /cudaErrorLaunchOutOfResources/));
    works(pruner);
  });

  it.each(calls)('a GPU that is lost: %s says so from then on', async (_, call) => {
    using pruner = await Pruner.load(head, CUDA);
    using image = await pruner.analyze(hidden);
    pretend('fail launch 1 719');
    const lost = failure('ERR_DEVICE_LOST', /cudaErrorLaunchFailure/);
    await expect(attempt(call, pruner)).rejects.toEqual(lost);
    for (const [, other] of calls) await expect(attempt(other, pruner)).rejects.toEqual(lost);
    await expect(image.prune(text, { keep })).rejects.toEqual(lost);
    expect(() => image.saliency()).toThrow(lost);
    image.dispose();
    pruner.dispose();
    await expect(pruner.analyze(hidden)).rejects.toEqual(failure('ERR_DISPOSED'));
    // Another process' GPU, so to speak: this library keeps nothing of the dead one.
    pretend('seed 2');
    using next = await Pruner.load(head, CUDA);
    works(next);
  });

  it('leaves a lost GPU in flight without a trace', async () => {
    const pruner = await Pruner.load(head, CUDA);
    pretend('fail launch 3 719');
    const flying = Array.from({ length: 6 }, () => pruner.prune(hidden, text, { keep }));
    pruner.dispose();
    for (const result of await Promise.allSettled(flying))
      expect(result).toEqual({ status: 'rejected', reason: failure('ERR_DEVICE_LOST') });
    pretend();
    using next = await Pruner.load(head, CUDA);
    works(next);
  });
});

describe('a fault in a block', () => {
  const weights = randomBlock(5, { width: 32, heads: 2, norm: 'layer', mlpWidth: 40 });
  const states = normalTensor(6, 40, 32);
  const images = [
    { hidden: states },
    { hidden: normalTensor(7, 9, 32), unit: Int32Array.from({ length: 9 }, (_, i) => i % 3) },
  ];
  const ask = async (block: desap.BlockHead) => {
    const all = await block.analyzeBatch(images);
    const results = all.map((one) => [
      values(one.attention!).slice(),
      one.saliency,
      one.unitSaliency,
      one.siglip!.global,
    ]);
    for (const one of all) one.dispose();
    return results;
  };
  let want: Awaited<ReturnType<typeof ask>>;
  beforeEach(async () => {
    using block = await BlockHead.load(weights, CUDA);
    want = await ask(block);
  });

  it('out of memory: says so, and works again', async () => {
    let failures = 0;
    for (let [nth, done] = [1, 0]; done < 3; nth++) {
      pretend();
      using block = await BlockHead.load(weights, CUDA);
      pretend(`fail allocation ${nth} 2`);
      const outcome = await ask(block).catch((error) => error);
      if (Array.isArray(outcome)) done++;
      else failures++;
      expect(outcome).toEqual(Array.isArray(outcome) ? want : failure('ERR_OUT_OF_MEMORY'));
      pretend();
      expect(await ask(block)).toEqual(want);
    }
    expect(failures).toBeGreaterThan(0);
  });

  it('a launch that fails: says so, and works again', async () => {
    using block = await BlockHead.load(weights, CUDA);
    for (const nth of [1, 5, 20]) {
      pretend(`fail launch ${nth} 701`);
      await expect(ask(block)).rejects.toEqual(failure('ERR_DEVICE_FAILED', /cudaErrorLaunchOutOfResources/));
      pretend();
      expect(await ask(block)).toEqual(want);
    }
  });

  it('a GPU that is lost: says so from then on', async () => {
    using block = await BlockHead.load(weights, CUDA);
    pretend('fail launch 3 719');
    const lost = failure('ERR_DEVICE_LOST', /cudaErrorLaunchFailure/);
    for (let call = 0; call < 3; call++) await expect(ask(block)).rejects.toEqual(lost);
    pretend('seed 2');
    using next = await BlockHead.load(weights, CUDA);
    expect(await ask(next)).toEqual(want);
  });

  it('several calls at a time give what one gives', async () => {
    using block = await BlockHead.load(weights, CUDA);
    for (const results of await Promise.all([1, 2, 3, 4].map(() => ask(block)))) expect(results).toEqual(want);
  });
});

describe('jobs', () => {
  it('run two at a time, give what one gives, and leave the event loop alone', async () => {
    using pruner = await Pruner.load(head, CUDA);
    const images = Array.from({ length: 8 }, (_, i) => normalTensor(20 + i, 17 + i, 32));
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    const together = await Promise.all(images.map((image) => pruner.prune(image, text, { keep })));
    clearInterval(timer);
    expect(ticks).toBeGreaterThan(3);
    for (const [i, image] of images.entries()) {
      const alone = pruner.pruneSync(image, text, { keep });
      expect(together[i].tokens.data).toEqual(alone.tokens.data);
      expect(together[i].indices).toEqual(alone.indices);
    }
  });

  it('end when the pruner is disposed of, and give their results', async () => {
    const pruner = await Pruner.load(head, CUDA);
    const want = pruner.pruneSync(hidden, text, { keep });
    const flying = Array.from({ length: 5 }, () => pruner.prune(hidden, text, { keep }));
    const analysis = pruner.analyze(hidden);
    pruner.dispose();
    for (const result of await Promise.all(flying)) expect(result.tokens.data).toEqual(want.tokens.data);
    using image = await analysis;
    expect(image.saliency()).toHaveLength(16);
    await expect(image.prune(text, { keep })).rejects.toEqual(failure('ERR_DISPOSED'));
  });

  it('a synchronous call does not wait for the one in flight', async () => {
    using pruner = await Pruner.load(head, CUDA);
    const large = normalTensor(5, 200, 64);
    let ended = false;
    const flying = pruner.backend.attention({ q: large, k: large, v: large, heads: 1 }).then(() => (ended = true));
    await sleep(2);
    expect(pruner.backend.sync.topK({ scores: Float32Array.of(1, 3, 2), k: 1 })).toEqual(Int32Array.of(1));
    expect(ended).toBe(false);
    await flying;
  });
});

describe('HostBuffer', () => {
  it('is pinned, and a GPU reads it in place', async () => {
    using buffer = HostBuffer.forTensor('float32', [17, 32]);
    expect(buffer.pinned).toBe(true);
    expect(buffer.address % 64n).toBe(0n);
    buffer.float32().set(values(hidden));
    const mine = buffer.tensor('float32', [17, 32]);
    using pruner = await Pruner.load(head, CUDA);
    using image = await pruner.analyze(mine);
    expect(image.featuresAddress).toBe(buffer.address);
    using copied = await pruner.analyze(hidden);
    expect(copied.featuresAddress).toBe(0n);
    expect(embeddings(image)).toEqual(embeddings(copied));
    const want = await copied.prune(text, { keep });
    expect((await image.prune(text, { keep })).tokens.data).toEqual(want.tokens.data);
    expect((await pruner.prune(mine, text, { keep })).tokens.data).toEqual(want.tokens.data);
  });

  it('of either kind serves every device', async () => {
    const buffers = [true, false].map((pinned) => HostBuffer.forTensor('float32', [17, 32], { pinned }));
    for (const device of ['cuda', 'cpu', 'reference'] as const) {
      using pruner = await Pruner.load(head, { device });
      const want = await pruner.prune(hidden, text, { keep });
      for (const buffer of buffers) {
        buffer.float32().set(values(hidden));
        const got = await pruner.prune(buffer.tensor('float32', [17, 32]), text, { keep });
        expect(got.tokens.data).toEqual(want.tokens.data);
        using image = await pruner.analyze(buffer.tensor('float32', [17, 32]));
        const inPlace = device === 'cuda' ? buffer.pinned : device === 'cpu' && !buffer.pinned;
        expect(image.featuresAddress === buffer.address).toBe(inPlace);
      }
    }
    for (const buffer of buffers) buffer.dispose();
  });

  it('is ordinary memory where no more can be pinned', async () => {
    using pruner = await Pruner.load(head, CUDA);
    pretend('fail allocation 1 2');
    const size = 123 * 4096;
    using buffer = HostBuffer.allocate(size);
    expect(buffer.pinned).toBe(false);
    pretend('fail allocation 1 2', 'seed 3');
    expect(() => HostBuffer.allocate(size + 4096, { pinned: true })).toThrow(
      failure('ERR_OUT_OF_MEMORY', /^HostBuffer: 507904 bytes cannot be pinned/),
    );
    const states = buffer.tensor('float32', [17, 32]);
    (states.data as Float32Array).set(values(hidden));
    expect((await pruner.prune(states, text, { keep })).indices).toHaveLength(keep);
  });

  it('outlives its use by an analysis and by calls in flight', async () => {
    using pruner = await Pruner.load(head, CUDA);
    const want = await pruner.prune(hidden, text, { keep });
    const buffer = HostBuffer.forTensor('float32', [17, 32]);
    buffer.float32().set(values(hidden));
    const image = await pruner.analyze(buffer.tensor('float32', [17, 32]));
    const flying = [1, 2, 3].map(() => pruner.prune(buffer.tensor('float32', [17, 32]), text, { keep }));
    buffer.dispose();
    using other = HostBuffer.forTensor('float32', [17, 32]);
    other.float32().fill(Number.NaN);
    expect((await image.prune(text, { keep })).tokens.data).toEqual(want.tokens.data);
    for (const result of await Promise.all(flying)) expect(result.tokens.data).toEqual(want.tokens.data);
    image.dispose();
  });
});

describe('precision', () => {
  const wide = randomHead(6, { width: 128, heads: 2, projectionDim: 64 });
  const image = normal(7, 65 * 128);
  for (const at of [5 * 128 + 3, 40 * 128 + 77]) image[at] += 40;
  const states = { data: image, dims: [65, 128] };
  const question = normalTensor(8, 9, 64);
  const errors: Record<string, number> = {};

  it.each([
    ['fp32', 1e-4],
    ['fp16', 5e-3],
    ['bf16', 4e-2],
  ] as const)('%s is as near to float64 as it says, in kernels and head', async (precision, tolerance) => {
    using reference = await Pruner.load(wide, { device: 'reference' });
    using pruner = await Pruner.load(wide, { device: 'cuda', precision });
    using exact = reference.analyzeSync(states);
    using got = pruner.analyzeSync(states);
    errors[precision] = relativeError(embeddings(got), embeddings(exact));
    expect(errors[precision]).toBeLessThan(tolerance);
    expect(relativeError(got.saliency(), exact.saliency())).toBeLessThan(tolerance);
    const want = exact.pruneSync(question, { keep: 16, maps: true });
    const kept = got.pruneSync(question, { keep: 16, maps: true });
    const common = kept.indices.filter((patch) => want.indices.includes(patch)).length;
    expect(common).toBeGreaterThanOrEqual({ fp32: 16, fp16: 15, bf16: 12 }[precision]);
    const [x, weight] = [normalTensor(9, 20, 96), normalTensor(10, 30, 96)];
    const product = values(reference.backend.sync.linear({ x, weight }));
    expect(relativeError(values(pruner.backend.sync.linear({ x, weight })), product)).toBeLessThan(tolerance);
  });

  it.each([
    ['fp16', 5e-3],
    ['bf16', 4e-2],
  ] as const)('%s is as near to float64 as it says, in a block', async (precision, tolerance) => {
    const weights = randomBlock(8, { width: 128, heads: 2, norm: 'rms', mlpWidth: 200 });
    using reference = await BlockHead.load(weights, { device: 'reference' });
    using block = await BlockHead.load(weights, { device: 'cuda', precision });
    using exact = reference.analyzeSync(states);
    using got = block.analyzeSync(states);
    expect(relativeError(values(got.attention!), values(exact.attention!))).toBeLessThan(tolerance);
    expect(relativeError(got.saliency, exact.saliency)).toBeLessThan(tolerance);
    expect(relativeError(values(got.siglip!.embeddings), values(exact.siglip!.embeddings))).toBeLessThan(tolerance);
  });

  it('gets coarser', () => {
    expect(errors.fp32).toBeLessThan(errors.fp16 / 10);
    expect(errors.fp16).toBeLessThan(errors.bf16);
  });
});
