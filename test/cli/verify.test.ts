import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { desap } from './run.js';

const GOLDEN = 'test/golden';
const TINY = join(GOLDEN, 'tiny.safetensors');

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-verify-'));
});
afterAll(() => rm(folder, { recursive: true }));

/** A copy of the tiny case whose tensor `name` is changed by `edit`. */
async function altered(name: string, edit: (bytes: Uint8Array) => void): Promise<string> {
  const bytes = new Uint8Array(await readFile(TINY));
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const [begin, end] = header[name].data_offsets;
  edit(bytes.subarray(8 + length + begin, 8 + length + end));
  const path = join(folder, `${name}.safetensors`);
  await writeFile(path, bytes);
  return path;
}

describe('desap verify', () => {
  it('agrees with every golden case', async () => {
    const files = (await readdir(GOLDEN)).filter((file) => file.endsWith('.safetensors'));
    const { code, out } = await desap('verify', ...files.map((file) => join(GOLDEN, file)), '--device', 'reference');
    expect(out).toContain(`${files.length} of ${files.length} cases agree`);
    expect(code).toBe(0);
  });

  it('reports unreadable files and still runs the others', async () => {
    const broken = join(folder, 'broken.safetensors');
    await writeFile(broken, 'nothing');
    const { code, out } = await desap('verify', broken, 'no/such.safetensors', TINY, '--device', 'reference', '--json');
    expect(code).toBe(1);
    const { failed, cases } = JSON.parse(out);
    expect(failed).toBe(2);
    expect(cases.map(({ ok }: { ok: boolean }) => ok)).toEqual([false, false, true]);
    expect(cases[0].failure).toContain('broken.safetensors');
    expect(cases[2].errors.tokens).toBeLessThan(1e-4);
  });

  it('finds a wrong value', async () => {
    const path = await altered('output.task', (bytes) => bytes.copyWithin(0, 8, 16));
    const { code, out } = await desap('verify', path, '--device', 'reference', '--json');
    expect(code).toBe(1);
    expect(JSON.parse(out).cases[0].errors.task).toBeGreaterThan(1e-4);
  });

  it('finds a wrong decision', async () => {
    const path = await altered('output.source', (bytes) => {
      bytes[0] ^= 1;
    });
    const { code, out } = await desap('verify', path, '--device', 'reference');
    expect(code).toBe(1);
    expect(out).toContain('DIFFERS');
  });

  it('says why a device is not available', async () => {
    const { code, err } = await desap('verify', TINY, '--device', 'cuda:99');
    expect(code).toBe(1);
    expect(err).toMatch(/^desap: .*cuda/);
  });
});
