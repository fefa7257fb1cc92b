/** Files that cannot be read whole. */
import { execFileSync } from 'node:child_process';
import { mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readBytes, readPart, readText } from '../src/files.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-files-'));
});
afterAll(() => rm(folder, { recursive: true }));

describe.runIf(process.platform !== 'win32')('a pipe', () => {
  it('is refused: nobody may ever write into it', async () => {
    const pipe = join(folder, 'pipe');
    execFileSync('mkfifo', [pipe]);
    const refused = { code: 'ERR_FILE', message: `${pipe}: got a pipe, a socket or a device, wanted a file` };
    await expect(readBytes(pipe)).rejects.toMatchObject(refused);
    await expect(readPart(pipe, async () => null)).rejects.toMatchObject(refused);
  });
});

describe('a text', () => {
  it('is refused where it is longer than a string can be', async () => {
    const path = join(folder, 'long');
    const bytes = 2 ** 29;
    // Sparse: it takes no room.
    const handle = await open(path, 'w');
    await handle.truncate(bytes);
    await handle.close();
    await expect(readText(path)).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(/long: got 536870912 bytes, wanted a text of at most 536870888 characters/),
    });
  });
});
