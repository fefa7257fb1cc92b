/** Where the pixels of a picture go: on a canvas, which is resized, of which a window is cut. */
import { mismatch } from '../../errors.js';
import type { Extent, Picture } from './extent.js';
import type { Recipe, ResizeRule } from './recipe.js';
import { type Canvas, resample } from './resample.js';

/** The most pixels that a result may have: 4096 x 4096. */
const MAX_RESULT = 2 ** 24;
/** The longest edge of a picture on its way, as in Pillow. */
const MAX_COORDINATE = 2 ** 31 - 1;
const NEAREST = 0;
const BLACK = [0, 0, 0] as const;

/**
 * A decoded picture as the encoder sees it: padded, resized and cropped. What a crop wants beyond the picture is black.
 * @throws DesapError `ERR_VALUE` for a picture that would become larger than 4096 x 4096 pixels, or nothing
 */
export function compose(picture: Picture, { square, resize, crop }: Recipe): Picture {
  const canvas = onCanvas(picture, square);
  const target = resize ? resized(canvas, resize.rule) : canvas;
  const { width, height } = crop ?? target;
  const fits = target.width >= 1 && target.height >= 1 && Math.max(target.width, target.height) <= MAX_COORDINATE;
  if (!fits || width * height > MAX_RESULT)
    throw mismatch(
      'ERR_VALUE',
      'image',
      `${picture.width} x ${picture.height} pixels, which become ${target.width} x ${target.height}, cut to ${width} x ${height}`,
      `1 to ${MAX_RESULT} pixels in the end`,
    );
  const [left, top] = [Math.floor((target.width - width) / 2), Math.floor((target.height - height) / 2)];
  const region = {
    left: Math.max(0, left),
    top: Math.max(0, top),
    width: Math.min(width, target.width),
    height: Math.min(height, target.height),
  };
  const part = resample(canvas, target, region, resize?.resampling ?? NEAREST);
  if (part.width === width && part.height === height) return part;
  const data = new Uint8Array(3 * width * height);
  for (let y = 0; y < part.height; y++)
    data.set(
      part.data.subarray(3 * y * part.width, 3 * (y + 1) * part.width),
      3 * ((y + region.top - top) * width + region.left - left),
    );
  return { data, width, height };
}

/** In the middle of a square of a colour; without one the canvas is the picture. */
function onCanvas(picture: Picture, square: Recipe['square']): Canvas {
  const side = Math.max(picture.width, picture.height);
  const { width, height } = square ? { width: side, height: side } : picture;
  const [left, top] = [Math.floor((width - picture.width) / 2), Math.floor((height - picture.height) / 2)];
  return { picture, width, height, left, top, background: square ?? BLACK };
}

/** The size after resizing, rounded as Hugging Face rounds it; the longer edge of a proportional one is cut off, not rounded. */
function resized({ width, height }: Extent, rule: ResizeRule): Extent {
  if (rule.to === 'extent') return rule.extent;
  if (rule.to === 'within') {
    const scale = Math.min(rule.extent.height / height, rule.extent.width / width);
    return { width: Math.floor(width * scale), height: Math.floor(height * scale) };
  }
  const [short, long] = [Math.min(width, height), Math.max(width, height)];
  const [edge, other] = proportional(short, long, rule.edge, rule.longest);
  return width <= height ? { width: edge, height: other } : { width: other, height: edge };
}

/** Both edges when the shorter becomes `edge`, or less when the longer would pass `longest`. */
function proportional(short: number, long: number, edge: number, longest: number | null): [number, number] {
  if (longest === null || (long / short) * edge <= longest) return [edge, Math.floor((edge * long) / short)];
  const exact = (longest * short) / long;
  const rounded = roundHalfEven(exact);
  return rounded === short ? [short, long] : [rounded, Math.floor((exact * long) / short)];
}

function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return floor + Number(rest > 0.5 || (rest === 0.5 && floor % 2 === 1));
}
