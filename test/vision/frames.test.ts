import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { frameIndices, videoFrames } from '../../src/vision/frames.js';

/** A program that answers as ffmpeg does. */
const ffmpeg = resolve('test/fixtures/ffmpeg.mjs');

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-frames-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function video(content: object | string): Promise<string> {
  const path = join(folder, `-v ${Math.random()};'".mp4`);
  await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
}

describe('frames of a video', () => {
  // numpy.linspace(0, total - 1, 8, dtype=int)
  it.each([
    [1, [0, 0, 0, 0, 0, 0, 0, 0]],
    [3, [0, 0, 0, 0, 1, 1, 1, 2]],
    [8, [0, 1, 2, 3, 4, 5, 6, 7]],
    [100, [0, 14, 28, 42, 56, 70, 84, 99]],
    [241, [0, 34, 68, 102, 137, 171, 205, 240]],
  ])('are spread as numpy spreads them: of %i', (total, indices) => {
    expect(frameIndices(total, 8)).toEqual(indices);
  });

  it('come from the first to the last, in their own size', async () => {
    const frames = await videoFrames(await video({ frames: 100, width: 6, height: 5 }), { ffmpeg });
    expect(frames.map(({ data }) => data[0])).toEqual([0, 14, 28, 42, 56, 70, 84, 99]);
    expect(frames.map(({ width, height, data }) => [width, height, data.length])).toEqual(
      new Array(8).fill([6, 5, 90]),
    );
    const [only] = await videoFrames(await video({ frames: 9 }), { ffmpeg, frames: 1 });
    expect(only.data[0]).toBe(0);
  });

  it('are given again where a video has few', async () => {
    const frames = await videoFrames(await video({ frames: 3 }), { ffmpeg });
    expect(frames.map(({ data }) => data[0])).toEqual([0, 0, 0, 0, 1, 1, 1, 2]);
  });

  it('are counted themselves where packets give none', async () => {
    const frames = await videoFrames(await video({ frames: 50, packets: 60 }), { ffmpeg });
    expect(frames.map(({ data }) => data[0])).toEqual([0, 7, 14, 21, 28, 35, 42, 49]);
  });

  it('come from no call that a signal ends', async () => {
    const [path, control] = [await video({ frames: 9 }), new AbortController()];
    const frames = videoFrames(path, { ffmpeg, signal: control.signal });
    control.abort();
    for (const call of [frames, videoFrames(path, { ffmpeg, signal: AbortSignal.abort() })])
      await expect(call).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  });

  it('come from old programs too', async () => {
    expect(await videoFrames(await video({ frames: 20, old: true }), { ffmpeg })).toHaveLength(8);
  });

  it.each<[string, () => Promise<unknown>, string, RegExp]>([
    [
      'no file',
      () => videoFrames('no/such.mp4', { ffmpeg }),
      'ERR_FILE',
      /^no\/such.mp4: got no such file, wanted a video/,
    ],
    [
      'what is no video',
      async () => videoFrames(await video('text'), { ffmpeg }),
      'ERR_FILE',
      /finds no frames in it: Invalid data/,
    ],
    [
      'a playlist, which names other files',
      async () => videoFrames(await video({ frames: 8, format: 'concat' }), { ffmpeg }),
      'ERR_FILE',
      /finds no frames in it: Invalid argument/,
    ],
    [
      'a video without frames',
      async () => videoFrames(await video({ frames: 0 }), { ffmpeg }),
      'ERR_FILE',
      /without frames/,
    ],
    [
      'a missing program',
      async () => videoFrames(await video({ frames: 8 }), { ffmpeg: 'no-such-ffmpeg' }),
      'ERR_MISSING_PACKAGE',
      /no-such-ffmpeg, which is not installed. Install it with: apt-get install ffmpeg/,
    ],
    [
      'no frames',
      async () => videoFrames(await video({ frames: 8 }), { ffmpeg, frames: 0 }),
      'ERR_VALUE',
      /^frames: got 0/,
    ],
    [
      'unknown options',
      () => videoFrames('x', { count: 8 } as never),
      'ERR_VALUE',
      /^options: got the unknown option 'count'/,
    ],
  ])('refuse %s', async (_, call, code, message) => {
    await expect(call()).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });
});
