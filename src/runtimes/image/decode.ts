import { DesapError, invalid } from '../../errors.js';
import { optional } from '../../optional.js';
import type { Picture } from './extent.js';

/** The most pixels that a picture may have, as in Pillow: twice 1 GiB / 4 / 3, rounded down. */
export const MAX_PIXELS = 178_956_970;

/**
 * Decodes an encoded picture as Pillow does for Hugging Face: the numbers of the file without its colour profile, upright (EXIF), RGB.
 * Transparency is dropped, grey is spread, 16 bits become their upper 8, CMYK becomes RGB by the plain formula.
 *
 * @param name what the error messages call it
 * @throws DesapError `ERR_FILE` for what is not a picture; `ERR_VALUE` for animations and for more than {@link MAX_PIXELS};
 *   `ERR_MISSING_PACKAGE`
 */
export async function decode(bytes: Uint8Array, name: string): Promise<Picture> {
  const { default: sharp } = await optional(() => import('sharp'), 'sharp', 'reading pictures');
  // The limit is checked here, so that the refusal has the numbers.
  const open = () => sharp(bytes, { failOn: 'error', ignoreIcc: true, limitInputPixels: false }).autoOrient();
  try {
    const { pages = 1, width, height, space } = await open().metadata();
    if (pages > 1) throw invalid('ERR_VALUE', name, `${pages} frames`, 'a single picture; extract the frame first');
    if (width * height > MAX_PIXELS)
      throw invalid('ERR_VALUE', name, `${width} x ${height} pixels`, `at most ${MAX_PIXELS} pixels`);
    if (space === 'cmyk') return fromCmyk(await raw(open().pipelineColourspace('cmyk').toColourspace('cmyk')));
    return rgbOf(await raw(open().toColourspace('srgb').removeAlpha()));
  } catch (cause) {
    if (cause instanceof DesapError) throw cause;
    const reason = (cause as Error).message.split('\\n')[0];
    throw new DesapError('ERR_FILE', `${name}: not a picture that can be read: ${reason}`, { cause });
  }
}

/** Pixels of one to four channels. */
export interface Channels extends Picture {
  readonly channels: number;
}

async function raw(pipeline: import('sharp').Sharp): Promise<Channels> {
  const { data, info } = await pipeline.raw({ depth: 'uchar' }).toBuffer({ resolveWithObject: true });
  return { data, width: info.width, height: info.height, channels: info.channels };
}

/** Grey (with or without transparency), RGB or RGBA as RGB: grey is spread, transparency is dropped. */
export function rgbOf({ data, width, height, channels }: Channels): Picture {
  if (channels === 3) return { data, width, height };
  const rgb = new Uint8Array(3 * width * height);
  const [green, blue] = channels < 3 ? [0, 0] : [1, 2];
  for (let from = 0, to = 0; to < rgb.length; from += channels, to += 3) {
    rgb[to] = data[from];
    rgb[to + 1] = data[from + green];
    rgb[to + 2] = data[from + blue];
  }
  return { data: rgb, width, height };
}

/** An ink of amount c under black of amount k leaves (1 - c) (1 - k) of the light; in bytes, c (1 - k) is rounded. */
function fromCmyk({ data, width, height }: Picture): Picture {
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    const light = 255 - data[4 * i + 3];
    for (let c = 0; c < 3; c++) rgb[3 * i + c] = light - Math.round((data[4 * i + c] * light) / 255);
  }
  return { data: rgb, width, height };
}
