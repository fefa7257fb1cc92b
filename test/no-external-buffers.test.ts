import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { emulatedAddon } from './fixtures/native.mjs';

// The addon finds Node-API in the executable, before any preloaded library. So a copy of it asks for another name.
const folder = mkdtempSync(join(tmpdir(), 'desap-electron-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function renamed(addon: string, name: string): string {
  const bytes = readFileSync(addon);
  const at = bytes.indexOf('napi_create_external_arraybuffer\0');
  expect(at).toBeGreaterThan(0);
  bytes.write('nap1', at);
  const file = join(folder, name);
  writeFileSync(file, bytes);
  return file;
}

function run(env: Record<string, string>): unknown {
  const out = execFileSync(process.execPath, ['test/fixtures/no-external-buffers.mjs'], {
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  return JSON.parse(out);
}

describe.runIf(process.platform === 'linux')('an engine without external buffers (Electron)', () => {
  const library = join(folder, 'electron.so');
  execFileSync('gcc', ['-shared', '-fPIC', '-o', library, 'test/fixtures/no-external-buffers.c']);
  const want = { available: true, inPlace: false, pinned: false, detached: 'ERR_DISPOSED', same: true, topK: '0,2' };

  it('leaves the memory to V8, and everything works', () => {
    const env = { LD_PRELOAD: library, DESAP_CPU_ADDON: renamed('build/Release/desap.node', 'cpu.node') };
    expect(run({ ...env, DESAP_TEST_DEVICE: 'cpu' })).toEqual({
      ...want,
      pinning: 'ERR_DEVICE_UNAVAILABLE',
      tooMuch: 'ERR_OUT_OF_MEMORY',
      answers: ['cloud', 'cloud'],
    });
  });

  it('pins nothing for a GPU', () => {
    const env = { LD_PRELOAD: library, DESAP_CUDA_ADDON: renamed(emulatedAddon, 'cuda.node') };
    expect(run({ ...env, DESAP_TEST_DEVICE: 'cuda' })).toMatchObject({ ...want, pinning: 'ERR_DEVICE_UNAVAILABLE' });
  });
});
