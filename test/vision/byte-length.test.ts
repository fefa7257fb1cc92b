/** What an image says that it holds, against what a process holds for it: the bound of a server's cache rests on it. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';

/** What allocators and objects of a tiny image take besides: of each tile, and of each image. */
const [TILE, IMAGE] = [2048, 8192];

it.each(['llava', 'llava_next', 'phi3_v', 'video_llava video', 'video_llava image', 'idefics3', 'gemma3'])(
  '%s',
  async (family) => {
    const args = ['--expose-gc', '--import', 'tsx', 'test/vision/held-bytes.ts', family];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    const { byteLength, measured, tiles } = JSON.parse(stdout);
    expect(measured).toBeLessThan(1.25 * byteLength + TILE * tiles + IMAGE);
    // A bound that is far too high would keep less than it may.
    expect(measured).toBeGreaterThan(0.4 * byteLength - IMAGE);
  },
  120_000,
);
