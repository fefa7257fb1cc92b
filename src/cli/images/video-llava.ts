import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DesapError } from '../../errors.js';
import { refuseEndless } from '../../files.js';
import { videoFrames } from '../../vision/frames.js';
import type { ImageSource } from '../../vision/image/source.js';
import { ImageProcessor } from '../../vision/image-processor.js';
import { type ImageReader, wholeStrip } from './reader.js';

/**
 * Video-LLaVA: an image, a video file (through ffmpeg), or a folder whose image files are the frames, in the order of their names.
 * @param frames how many are taken of a video file
 */
export async function videoLlavaImages(folder: string, frames?: number): Promise<ImageReader> {
  const processor = await ImageProcessor.open(folder);
  return {
    async read(source) {
      const rgb = await imageOf(processor, source);
      if (rgb !== null)
        return {
          inputs: { pixelValues: processor.normalize(rgb) },
          strips: async ({ tiles: [tile] }) => [wholeStrip(rgb, tile)],
        };
      const shown = await framesOf(source as string, frames);
      return {
        inputs: { pixelValuesVideos: await processor.video(shown) },
        // Each frame has a class row in front of its patches.
        strips: ({ tiles }) =>
          Promise.all(
            tiles.map(async (tile) => {
              const first = tile.frame * (1 + tile.rows * tile.columns) + 1;
              return wholeStrip(await processor.rgb(shown[tile.frame]), tile, first, `frame ${tile.frame + 1}`);
            }),
          ),
      };
    },
  };
}

/** The image; null for a file that is none, and may be a video, and for a folder. */
async function imageOf(processor: ImageProcessor, source: ImageSource) {
  if (typeof source !== 'string' || !(await isThere(source))) return processor.rgb(source);
  return processor.rgb(source).catch((error) => {
    if (error instanceof DesapError && error.code === 'ERR_FILE') return null;
    throw error;
  });
}

async function framesOf(source: string, frames?: number): Promise<readonly ImageSource[]> {
  await refuseEndless(source);
  if (!(await stat(source)).isDirectory()) return videoFrames(source, { frames });
  const names = (await readdir(source)).filter((name) => !name.startsWith('.')).sort(byNumber);
  if (names.length > 0) return names.map((name) => join(source, name));
  throw new DesapError('ERR_FILE', `${source}: got an empty folder, wanted the frames of a video`);
}

/** frame2 stands in front of frame10. */
const byNumber = new Intl.Collator('en', { numeric: true }).compare;

const isThere = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  );
