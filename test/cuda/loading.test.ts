/**
 * Which CUDA addon is loaded, and what happens where there is none that can be used: by default because there is no such
 * file. With DESAP_CUDA_ADDON naming a real addon on a machine without a driver, the same is asked of that one.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { findCudaAddon } from '../../src/devices/cuda.js';
import { type DeviceOptions, devices, HostBuffer, openBackend, Pruner } from '../../src/index.js';
import { desap, ONE_LINE } from '../cli/run.js';
import { normalTensor, randomHead } from '../support.js';

const MISSING = '/nonexistent/desap_cuda.node';
const addon = process.env.DESAP_CUDA_ADDON || MISSING;
process.env.DESAP_CUDA_ADDON = addon;
const loads = addon !== MISSING;

const root = mkdtempSync(join(tmpdir(), 'desap-cuda-'));
afterAll(() => rmSync(root, { recursive: true }));
afterEach(() => vi.unstubAllEnvs());

describe('the CUDA addon', () => {
  const write = (...path: string[]) => {
    const file = join(root, ...path);
    mkdirSync(join(file, '..'), { recursive: true });
    writeFileSync(file, 'not a library');
    return file;
  };
  const reason = () => findCudaAddon(root).status.reason;
  const prebuilds = ['prebuilds', `${process.platform}-${process.arch}`];

  it('is looked for in the environment, in build-cuda and in prebuilds, in this order', () => {
    vi.stubEnv('DESAP_CUDA_ADDON', undefined);
    expect(findCudaAddon(root)).toEqual({
      addon: null,
      status: {
        available: false,
        reason: expect.stringMatching(/^no CUDA addon for .*npm run build:cuda/),
        devices: [],
      },
    });
    write(...prebuilds, 'desap.node');
    expect(reason()).toMatch(/^no CUDA addon/);
    const prebuilt = write(...prebuilds, 'cuda', 'desap_cuda.node');
    expect(reason()).toContain(`the CUDA addon ${prebuilt} does not load: `);
    const built = write('build-cuda', 'Release', 'desap_cuda.node');
    expect(reason()).toContain(`the CUDA addon ${built} does not load: `);
    const own = write('own.node');
    vi.stubEnv('DESAP_CUDA_ADDON', own);
    expect(reason()).toContain(`the CUDA addon ${own} does not load: `);
    vi.stubEnv('DESAP_CUDA_ADDON', MISSING);
    expect(reason()).toMatch(/^the CUDA addon \/nonexistent\/desap_cuda.node does not load: [^\n]+$/);
  });
});

describe('without CUDA', () => {
  const head = randomHead(1, { width: 32, heads: 2, projectionDim: 16 });
  const why = loads ? '(no NVIDIA driver|driver too old|no device|unsupported)' : 'the CUDA addon .* does not load: ';
  const reason = expect.stringMatching(new RegExp(`^cuda: ${why}`));

  it('devices() says so', () => {
    expect(devices().filter(({ device }) => device.startsWith('cuda'))).toEqual([
      { device: 'cuda', available: false, reason: expect.stringMatching(new RegExp(`^${why}`)) },
    ]);
  });

  it.each([['cuda'], ['cuda:0'], ['cuda:7']] as [DeviceOptions['device']][])('%s throws', async (device) => {
    const named = expect.objectContaining({
      code: 'ERR_DEVICE_UNAVAILABLE',
      message: expect.stringContaining(`${device}: `),
    });
    expect(() => openBackend({ device })).toThrow(named);
    await expect(Pruner.load(head, { device })).rejects.toEqual(named);
  });

  it('auto takes the CPU and says why', async () => {
    using pruner = await Pruner.load(head, { precision: 'fp16' });
    using backend = openBackend();
    for (const one of [pruner.backend, backend]) {
      expect(one.device).toBe('cpu');
      expect(one.precision).toBe('fp32');
      expect(one.fallback).toEqual(reason);
    }
    expect(pruner.pruneSync(normalTensor(2, 17, 32), normalTensor(3, 5, 16), { keep: 3 }).indices).toHaveLength(3);
  });

  it('the same holds in a worker', async () => {
    const worker = new Worker(new URL('../fixtures/device.mjs', import.meta.url));
    const answer = await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
    expect(answer).toEqual({
      auto: { device: 'cpu', fallback: reason, kept: 3 },
      cuda: { code: 'ERR_DEVICE_UNAVAILABLE', message: reason },
    });
  });

  it('a HostBuffer is ordinary memory, and none is pinned', () => {
    for (const options of [undefined, {}, { pinned: false }]) {
      using buffer = HostBuffer.allocate(100, options);
      expect(buffer.pinned).toBe(false);
    }
    expect(() => HostBuffer.allocate(100, { pinned: true })).toThrow(
      expect.objectContaining({
        code: 'ERR_DEVICE_UNAVAILABLE',
        message: expect.stringMatching(new RegExp(`^pinned: got true.*${why}`)),
      }),
    );
  });

  it('the command line says so', async () => {
    const { code, err } = await desap(
      'verify',
      'test/golden/tiny.safetensors',
      '--device',
      'cuda',
      '--precision',
      'fp16',
    );
    expect(code).toBe(1);
    expect(err).toMatch(ONE_LINE);
    expect(err).toMatch(new RegExp(why));
  });
});
