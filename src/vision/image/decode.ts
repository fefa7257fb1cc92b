import type { Metadata, Sharp } from 'sharp';
import { DesapError, mismatch } from '../../errors.js';
import { limits } from '../../limits.js';
import { optional } from '../../optional.js';
import type { RgbImage } from './extent.js';

/** Pixels of one to four channels, one byte each. */
export interface Channels extends RgbImage {
  readonly channels: number;
}

/**
 * Decodes an encoded image as Pillow does for Hugging Face: upright RGB, with the numbers of the file, whatever its colour profile says.
 * Transparency is dropped (transparent pixels of a GIF have no colour and become white), grey is spread, the upper 8 of 16 bits stay,
 * and CMYK becomes RGB by the plain formula. Only the chroma of AVIF differs, since every decoder enlarges it in its own way.
 *
 * @param name what the error messages call it
 * @throws DesapError `ERR_FILE` for bytes that are not an image; `ERR_VALUE` for animations and for more pixels than the limit `imagePixels`;
 *   `ERR_MISSING_PACKAGE`
 */
export async function decode(bytes: Uint8Array, name: string): Promise<RgbImage> {
  const { default: sharp } = await optional(() => import('sharp'), 'sharp', 'reading images');
  // The limit is checked below, so that the refusal has the numbers.
  const open = () => sharp(bytes, { failOn: 'error', ignoreIcc: true, limitInputPixels: false });
  try {
    const metadata = await open().metadata();
    const { pages = 1, width, height, space, format } = metadata;
    if (pages > 1) throw mismatch('ERR_VALUE', name, `${pages} frames`, 'a single image; extract the frame first');
    const { imagePixels } = limits();
    if (width * height > imagePixels)
      throw mismatch(
        'ERR_VALUE',
        name,
        `${width} x ${height} pixels`,
        `at most ${imagePixels} pixels (limits({ imagePixels }))`,
      );
    const upright = turn(open(), metadata);
    if (space === 'cmyk') return fromCmyk(await raw(upright.pipelineColourspace('cmyk').toColourspace('cmyk')));
    const rgb = upright.toColourspace('srgb');
    return rgbOf(await raw(format === 'gif' ? rgb.flatten({ background: 'white' }) : rgb.removeAlpha()));
  } catch (cause) {
    if (cause instanceof DesapError) throw cause;
    const reason = (cause as Error).message.trim().split('\n')[0];
    throw new DesapError('ERR_FILE', `${name}: not an image that can be read: ${reason}`, { cause });
  }
}

/** Upright by the orientation in EXIF or, where there is none, in XMP: mirrored for 2, 4, 5 and 7, and then turned. */
function turn(image: Sharp, { orientation, xmp }: Metadata): Sharp {
  if (orientation !== undefined) return image.autoOrient();
  const other = Number(/tiff:Orientation(?:="|>)([1-8])/.exec(String(xmp ?? ''))?.[1] ?? 1);
  const degrees = [0, 0, 180, 180, 270, 90, 90, 270][other - 1];
  return image.flop([2, 4, 5, 7].includes(other)).rotate(degrees);
}

async function raw(pipeline: Sharp): Promise<Channels> {
  const { data, info } = await pipeline.raw({ depth: 'uchar' }).toBuffer({ resolveWithObject: true });
  return { data, width: info.width, height: info.height, channels: info.channels };
}

/** Grey (with or without transparency), RGB or RGBA as RGB: grey is spread, transparency is dropped. */
export function rgbOf({ data, width, height, channels }: Channels): RgbImage {
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

/** A channel is (1 - c) (1 - k), for an ink of amount c and black of amount k; in bytes, with c (1 - k) rounded. */
function fromCmyk({ data, width, height }: RgbImage): RgbImage {
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    const light = 255 - data[4 * i + 3];
    for (let c = 0; c < 3; c++) rgb[3 * i + c] = light - Math.round((data[4 * i + c] * light) / 255);
  }
  return { data: rgb, width, height };
}
