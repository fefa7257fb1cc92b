/** Frames of a video file, through ffmpeg where it is installed. */
import { spawn } from 'node:child_process';
import { resolve } from 'node:path';
import { ABORTABLE, type Abortable, abortable, checkAborted } from '../abort.js';
import { DesapError } from '../errors.js';
import { isFile } from '../files.js';
import { type OptionNames, options } from '../options.js';
import { integer, nonEmpty } from '../tensor.js';
import type { RgbImage } from './image/extent.js';

/** Options of {@link videoFrames}. */
export interface VideoFramesOptions {
  /** How many frames; default 8, as Video-LLaVA takes. */
  frames?: number;
  /** The ffmpeg program; default: the installed one. */
  ffmpeg?: string;
}

const NAMES: OptionNames<VideoFramesOptions & Abortable> = { frames: true, ffmpeg: true, ...ABORTABLE };
const MAX_FRAMES = 1024;
/** Bytes of a frame: 8192 x 8192 pixels, and its header. */
const MAX_FRAME = 3 * 2 ** 26 + 64;
/** What a count of frames is written with. */
const MAX_TEXT = 2 ** 24;
/** What videos are kept in. Playlists, which name other files, are left out. */
const CONTAINERS =
  'mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,rm,mxf,nut,dv,ivf,gif,apng,h264,hevc,m4v,mpegvideo,yuv4mpegpipe';
const SPELLINGS = [
  ['-fps_mode', 'passthrough'],
  // Before version 5.1.
  ['-vsync', '0'],
];
const INSTALL = 'apt-get install ffmpeg (Debian, Ubuntu), brew install ffmpeg (macOS), winget install ffmpeg (Windows)';

/**
 * Which frames stand for a video: trunc(linspace(0, total - 1, count)). A video of fewer frames gives some of them again.
 *
 * @param total frames of the video
 */
export function frameIndices(total: number, count: number): number[] {
  const step = (total - 1) / Math.max(1, count - 1);
  return Array.from({ length: count }, (_, i) => (i > 0 && i === count - 1 ? total - 1 : Math.trunc(i * step)));
}

/**
 * Evenly spread frames of a video file, upright, from its first to its last. No frame is mirrored: what the training code of Video-LLaVA
 * does at random is left out. ffmpeg is run without a shell, and opens nothing but the file: a playlist is refused.
 *
 * @throws DesapError `ERR_FILE` for a file that is missing or no video, and for one without frames; `ERR_MISSING_PACKAGE` where ffmpeg is
 *   not installed, with the install line; `ERR_VALUE`
 */
export async function videoFrames(path: string, given?: VideoFramesOptions & Abortable): Promise<RgbImage[]> {
  const { signal, ...own } = options('options', given, NAMES);
  return abortable(signal, () => framesOf(path, own));
}

async function framesOf(
  path: string,
  { frames: count = 8, ffmpeg = 'ffmpeg' }: VideoFramesOptions,
): Promise<RgbImage[]> {
  integer('frames', count, 1, MAX_FRAMES);
  nonEmpty('ffmpeg', ffmpeg, 'the ffmpeg program');
  if (!(await isFile(nonEmpty('path', path, 'the path of a video'))))
    throw new DesapError('ERR_FILE', `${path}: got no such file, wanted a video`);
  const video: Video = { path, ffmpeg };
  // Packets are counted without decoding them. Where some give no frame, the frames themselves are counted.
  for (const how of [['-c', 'copy'], []]) {
    const indices = frameIndices(await countFrames(video, how), count);
    checkAborted();
    const found = await decode(video, new Set(indices));
    const unique = [...new Set(indices)];
    if (found.length === unique.length) return indices.map((index) => found[unique.indexOf(index)]);
  }
  throw new DesapError('ERR_FILE', `${path}: ffmpeg gives fewer frames than it counts`);
}

interface Video {
  readonly path: string;
  readonly ffmpeg: string;
}

async function countFrames(video: Video, how: readonly string[]): Promise<number> {
  const output = ['-nostats', '-progress', 'pipe:1', '-map', '0:v:0', ...how, '-f', 'null', '-'];
  const text = new TextDecoder().decode(await run(video, output, MAX_TEXT));
  const count = Number([...text.matchAll(/^frame=\s*(\d+)/gm)].at(-1)?.[1] ?? 0);
  if (count > 0) return count;
  throw new DesapError('ERR_FILE', `${video.path}: got a video without frames`);
}

/** The frames with these numbers, in their order. */
async function decode(video: Video, indices: ReadonlySet<number>): Promise<RgbImage[]> {
  const wanted = [...indices].map((index) => `eq(n\\,${index})`).join('+');
  const output = [
    '-vf',
    `select=${wanted}`,
    '-frames:v',
    String(indices.size),
    '-f',
    'image2pipe',
    '-c:v',
    'ppm',
    'pipe:1',
  ];
  for (const [i, spelling] of SPELLINGS.entries())
    try {
      return parsePpm(await run(video, ['-map', '0:v:0', ...spelling, ...output], indices.size * MAX_FRAME), video);
    } catch (error) {
      if (i === SPELLINGS.length - 1 || !/fps_mode/.test((error as Error).message)) throw error;
    }
  throw new DesapError('ERR_INTERNAL', 'videoFrames: no spelling');
}

/**
 * What ffmpeg writes.
 * @throws DesapError `ERR_FILE` with its own words, and for more than `most` bytes; `ERR_MISSING_PACKAGE`
 */
function run({ path, ffmpeg }: Video, output: readonly string[], most: number): Promise<Uint8Array> {
  const limits = ['-protocol_whitelist', 'file', '-format_whitelist', CONTAINERS];
  const input = ['-v', 'error', '-nostdin', ...limits, '-i', `file:${resolve(path)}`];
  return new Promise((done, fail) => {
    const child = spawn(ffmpeg, [...input, ...output], { stdio: ['ignore', 'pipe', 'pipe'], shell: false });
    const chunks: Uint8Array[] = [];
    let [length, words] = [0, ''];
    child.stdout.on('data', (chunk: Uint8Array) => {
      length += chunk.length;
      if (length <= most) chunks.push(chunk);
      else child.kill();
    });
    child.stderr.on('data', (chunk: Uint8Array) => {
      if (words.length < 1000) words += String(chunk);
    });
    child.on('error', (cause: Error & { code?: string }) => {
      const missing = `frames of a video need ${ffmpeg}, which is not installed. Install it with: ${INSTALL}; or give the frames as images`;
      fail(
        cause.code === 'ENOENT'
          ? new DesapError('ERR_MISSING_PACKAGE', missing, { cause })
          : new DesapError('ERR_FILE', `${path}: ${ffmpeg} does not run: ${cause.message}`, { cause }),
      );
    });
    child.on('close', (code) => {
      const reason = words.trim().split('\n').join(' ');
      if (length > most) fail(new DesapError('ERR_FILE', `${path}: got frames of more than ${most} bytes`));
      else if (code === 0) done(Buffer.concat(chunks));
      else fail(new DesapError('ERR_FILE', `${path}: ffmpeg finds no frames in it: ${reason || `exit code ${code}`}`));
    });
  });
}

/** Images in the PPM format (P6, one byte a channel), one after the other. */
function parsePpm(bytes: Uint8Array, { path }: Video): RgbImage[] {
  const images: RgbImage[] = [];
  for (let at = 0; at < bytes.length; ) {
    const header = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(new TextDecoder('latin1').decode(bytes.subarray(at, at + 64)));
    const [width, height] = [Number(header?.[1]), Number(header?.[2])];
    const end = at + (header?.[0].length ?? 0) + 3 * width * height;
    if (!header || !(end <= bytes.length))
      throw new DesapError('ERR_FILE', `${path}: ffmpeg wrote something other than whole PPM images`);
    images.push({ data: bytes.slice(end - 3 * width * height, end), width, height });
    at = end;
  }
  return images;
}
