import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { createCpuDriver, loadAddon, loadCpuAddon } from '../src/devices/cpu.js';
import { typed } from '../src/devices/native-error.js';
import * as small from './fixtures/native.mjs';
import { ROOT } from './support.js';

it.skipIf(process.platform !== 'linux' || process.arch !== 'x64')(
  'instruction sets are those that Linux tells of',
  () => {
    const flags = new Set(/^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'latin1'))![1].split(' '));
    const has = (...names: string[]) => names.every((name) => flags.has(name));
    const avx2 = has('avx2', 'fma', 'f16c');
    const avx512 = avx2 && has('avx512f', 'avx512bw', 'avx512dq', 'avx512vl');
    const wanted = { avx512bf16: avx512 && has('avx512_bf16'), avx512, avx2, scalar: true };
    const isas: readonly string[] = loadCpuAddon().isas;
    expect(Object.fromEntries(Object.keys(wanted).map((isa) => [isa, isas.includes(isa)]))).toEqual(wanted);
  },
);

// In the time of a float32 product Zen 4 does two of bfloat16 numbers, and Intel's Sapphire Rapids class half of one.
it.skipIf(!loadCpuAddon().isas.includes('avx512bf16'))('bfloat16 comes first where its products are faster', () => {
  const about = readFileSync('/proc/cpuinfo', 'latin1');
  const [vendor, model] = ['vendor_id', 'model'].map((name) => new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(about)![1]);
  const [first] = loadCpuAddon().isas;
  if (vendor === 'AuthenticAMD') expect(first).toBe('avx512bf16');
  if (vendor === 'GenuineIntel' && ['143', '207'].includes(model)) expect(first).toBe('avx512');
});

describe('memory that there is not', () => {
  it('is an error, thrown or rejected with, and the device stays usable', async () => {
    const driver = createCpuDriver({ threads: 1 });
    const [visual, text] = [small.waves(1_000_000, 1), small.waves(1_000_000, 1)];
    const args = {
      visual,
      text,
      endOfText: small.wave(1),
      global: small.wave(1),
      alignment: 'fcma',
      lambda: 0.1,
      matrices: true,
    } as const;
    const outOfMemory = expect.objectContaining({ name: 'DesapError', code: 'ERR_OUT_OF_MEMORY' });
    expect(() => typed(() => driver.run('align', args, true))).toThrow(outOfMemory);
    expect(() => typed(() => driver.run('align', args, false))).toThrow(outOfMemory);
    expect(driver.run('topK', { scores: small.wave(3), k: 3, excluded: null }, true)).toHaveLength(3);
    driver.dispose();
  });
});

describe('createCpuDriver', () => {
  it("has errors that say the caller's name of the argument, thrown or rejected with", async () => {
    const driver = createCpuDriver({ threads: 1 });
    const images = [small.waves(17, 32), small.waves(17, 32)];
    images[1].data[3 * 32 + 5] = Number.NaN;
    const own = await driver.createHead(small.smallHead());
    const failure = expect.objectContaining({
      name: 'DesapError',
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(/^hidden\[1\]: got NaN.* row 3, wanted finite values$/),
      row: 3,
    });
    expect(() => typed(() => own.analyze(images, small.analyzeRequest, true))).toThrow(failure);
    await expect(typed(() => own.analyze(images, small.analyzeRequest, false))).rejects.toEqual(failure);
    expect(() => typed(() => own.analyze([images[1]], small.analyzeRequest, true))).toThrow(/^hidden: got NaN/);
    driver.dispose();
    driver.dispose();
    expect(() => typed(() => driver.createHead(small.smallHead()))).toThrow(/device: used after dispose/);
  });

  it('checks again what reaches the addon', () => {
    const { Context } = loadCpuAddon();
    expect(() => new Context({ threads: 0, isa: 'scalar', precision: 'fp32' })).toThrow(
      expect.objectContaining({ code: 'ERR_VALUE' }),
    );
    expect(() => new Context({ threads: '2' as never, isa: 'scalar', precision: 'fp32' })).toThrow(
      /^got '2', wanted an integer from 1 to 256/,
    );
    expect(() => new Context({ threads: 1, isa: 'scalar', precision: 'half' as never })).toThrow(
      /^got 'half', wanted 'fp32' \| 'bf16'/,
    );
    expect(() => new Context({ threads: 1, isa: 'mmx', precision: 'fp32' })).toThrow(
      expect.objectContaining({ code: 'ERR_DEVICE_UNAVAILABLE' }),
    );
  });

  it('says what it supports', () => {
    expect(() => createCpuDriver({ threads: 0 })).toThrow(expect.objectContaining({ code: 'ERR_VALUE' }));
    expect(() => createCpuDriver({ threads: 1.5 })).toThrow(/threads: got 1.5, wanted an integer from 1 to 256/);
    expect(() => createCpuDriver({ isa: 'mmx' })).toThrow(
      /isa: got 'mmx', wanted one that this machine runs: .*scalar/,
    );
    for (const isa of loadCpuAddon().isas) {
      const driver = createCpuDriver({ threads: 3, isa });
      expect(driver).toMatchObject({ device: 'cpu', deviceDescription: `CPU, ${isa}, 3 threads`, precision: 'fp32' });
      driver.dispose();
    }
  });

  it('tells a missing addon from one that does not load', async () => {
    const root = mkdtempSync('/tmp/desap-');
    try {
      const unavailable = (message: RegExp) =>
        expect.objectContaining({ code: 'ERR_DEVICE_UNAVAILABLE', message: expect.stringMatching(message) });
      expect(() => loadAddon(root)).toThrow(unavailable(/no native addon in .*: No native build .*cmake-js compile/));
      mkdirSync(`${root}/build/Release`, { recursive: true });
      writeFileSync(`${root}/build/Release/desap.node`, 'not a library');
      expect(() => loadAddon(root)).toThrow(unavailable(/does not load: .*cmake-js compile/));
    } finally {
      rmSync(root, { recursive: true });
    }
  });

  it('is taken from where DESAP_CPU_ADDON says; a bundle without one is told what to do', () => {
    const unavailable = (message: RegExp) =>
      expect.objectContaining({ code: 'ERR_DEVICE_UNAVAILABLE', message: expect.stringMatching(message) });
    expect(() => loadAddon(null)).toThrow(unavailable(/bundle.*mark desap as external.*or set DESAP_CPU_ADDON/));
    try {
      process.env.DESAP_CPU_ADDON = 'build/Release/desap.node';
      expect(loadAddon(null).kind).toBe('cpu');
      process.env.DESAP_CPU_ADDON = 'nowhere.node';
      expect(() => loadAddon(ROOT)).toThrow(unavailable(/nowhere.node does not load/));
    } finally {
      delete process.env.DESAP_CPU_ADDON;
    }
  });

  it('that is missing is told once by auto, which computes in JavaScript then', () => {
    const program = `
      import { openBackend } from './dist/index.js';
      for (const backend of [openBackend(), openBackend(), openBackend({ device: 'reference' })]) console.log(backend.device, backend.fallback);`;
    const args = ['--input-type=module', '--eval', program];
    const env = { ...process.env, DESAP_CPU_ADDON: 'nowhere.node' };
    const { stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8', env });
    expect(stdout).toMatch(/^(reference .*nowhere.node does not load.*\n){2}reference null\n$/);
    expect(stderr.match(/\[DESAP_REFERENCE\] DesapWarning: .*hundreds of times slower.*nowhere.node/g)).toHaveLength(1);
  });
});
