/** Where the pixels of an image go: onto a canvas, which is resized, and from which a window is cut. */
import { mismatch } from '../../errors.js';
import type { Extent, RgbImage } from './extent.js';
import type { Recipe, ResizeRule } from './recipe.js';
import { type Canvas, resample } from './resample.js';

/** The most pixels that a result may have: 4096 x 4096. */
const MAX_RESULT = 2 ** 24;
/** The longest edge of an image on its way, as in Pillow. */
const MAX_COORDINATE = 2 ** 31 - 1;
const NEAREST = 0;
const BLACK = [0, 0, 0] as const;

/**
 * A decoded image as the encoder sees it: padded, resized and cropped. A crop that is larger than the image is black around it.
 * @throws DesapError `ERR_VALUE` for an image that would become larger than 4096 x 4096 pixels, or empty
 */
export function compose(image: RgbImage, { square, resize, crop }: Recipe): RgbImage {
  const canvas = onCanvas(image, square);
  const target = resize ? resized(canvas, resize.rule) : canvas;
  const { width, height } = crop ?? target;
  const fits = target.width >= 1 && target.height >= 1 && Math.max(target.width, target.height) <= MAX_COORDINATE;
  if (!fits || width * height > MAX_RESULT)
    throw mismatch(
      'ERR_VALUE',
      'image',
      `${image.width} x ${image.height} pixels, which become ${target.width} x ${target.height}, cut to ${width} x ${height}`,
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

/** In the middle of a square of a colour; without one the canvas is the image. */
function onCanvas(image: RgbImage, square: Recipe['square']): Canvas {
  const side = Math.max(image.width, image.height);
  const { width, height } = square ? { width: side, height: side } : image;
  const [left, top] = [Math.floor((width - image.width) / 2), Math.floor((height - image.height) / 2)];
  return { image, width, height, left, top, background: square ?? BLACK };
}

/** The size after resizing, rounded as Hugging Face rounds it. The longer edge of a proportional size is rounded down. */
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

/** Both edges: the shorter becomes `edge`, or less where the longer would pass `longest`. */
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
