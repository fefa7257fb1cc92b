/**
 * Memory and threads run short: every allocation and every thread start of the addon fails in turn, and on the emulated GPU every
 * allocation and call of the CUDA runtime. Node and V8 themselves end the process when they have none, which nothing here can change.
 * `DESAP_LONG` takes each of them.
 */
import { execFile, execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, describe, expect, it } from 'vitest';

const folder = mkdtempSync(join(tmpdir(), 'desap-faults-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const node = async (args: string[], env: Record<string, string> = {}) => {
  const { stdout } = await promisify(execFile)(process.execPath, args, { env: { ...process.env, ...env } });
  return JSON.parse(stdout);
};

describe.runIf(process.platform === 'linux')('what fails', () => {
  const library = join(folder, 'faults.so');
  execFileSync('g++', ['-std=c++17', '-O2', '-shared', '-fPIC', '-o', library, 'native/test/faults.cc', '-ldl']);

  async function fail(kind: string, each: number, env: Record<string, string>) {
    const shared = join(folder, `${kind}-${Object.keys(env)}`);
    writeFileSync(shared, new Uint8Array(4096));
    const args = ['--expose-gc', 'test/fixtures/faults.mjs', kind, String(each)];
    return node(args, { ...env, DESAP_FAULTS: shared, LD_PRELOAD: library });
  }

  it('an allocation', { timeout: 600_000 }, async () => {
    const each = process.env.DESAP_LONG ? 1 : 7;
    const { failed, problems } = await fail('allocation', each, {});
    expect(problems).toEqual([]);
    expect(Object.values<number>(failed).every((count) => count > 0)).toBe(true);
    expect(failed.kernels * each).toBeGreaterThan(100);
  });

  it.each([
    ['an allocation of the emulated GPU', 'device-allocation'],
    ['a call of the CUDA runtime', 'device-call'],
  ])('%s', { timeout: 900_000 }, async (_, kind) => {
    const each = process.env.DESAP_LONG ? 1 : kind === 'device-call' ? 97 : 7;
    const env = { DESAP_TEST_EMULATED: '1', DESAP_SIMT_CONTROL: join(folder, `${kind}-control`) };
    const { failed, problems } = await fail(kind, each, env);
    expect(problems).toEqual([]);
    // What does nothing on the device has nothing that could fail.
    for (const part of ['device', 'kernels', 'head', 'block', 'parts']) expect(failed[part], part).toBeGreaterThan(0);
  });

  it.each([
    ['on the CPU', {}],
    ['on the emulated GPU', { DESAP_TEST_EMULATED: '1' }],
  ])('the start of a thread %s', async (_, env) => {
    const { failed, problems } = await fail('thread', 1, env as Record<string, string>);
    expect(problems).toEqual([]);
    expect(failed.device).toBe(3);
  });
});

it.runIf(process.platform === 'linux')('idle HostBuffers are given back before a call is refused', async () => {
  const { idle, left } = await node(['test/fixtures/short-memory.mjs']);
  expect(idle).toEqual(Array(3).fill(200 * 2 ** 20));
  expect(left).toEqual([0, 0, 0]);
});
