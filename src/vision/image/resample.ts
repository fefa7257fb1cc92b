import { type Axis, axisOf, BITS } from './axis.js';
import type { Extent, Rgb, RgbImage } from './extent.js';

const HALF = 1 << (BITS - 1);

/** An image on a larger canvas of one colour. */
export interface Canvas extends Extent {
  readonly image: RgbImage;
  readonly left: number;
  readonly top: number;
  readonly background: Rgb;
}

/** A part of the resized canvas. */
export interface Region extends Extent {
  readonly left: number;
  readonly top: number;
}

/**
 * A region of a canvas that is resized to `target`, in Pillow's arithmetic: one axis after the other, with bytes in between. Rows come
 * first; columns do where the height loses more than twice as many pixels as the width, as in Pillow since version 13.
 *
 * Only what the region needs is computed. Memory: about 15 bytes for a pixel of the region, one row, and the weights of both axes.
 *
 * @param resampling one of Pillow's numbers, 0 to 5
 */
export function resample(canvas: Canvas, target: Extent, region: Region, resampling: number): RgbImage {
  const { image, background } = canvas;
  const { width, height } = region;
  const across = axisOf(
    {
      canvas: canvas.width,
      start: canvas.left,
      image: image.width,
      target: target.width,
      from: region.left,
      wanted: width,
    },
    resampling,
  );
  const down = axisOf(
    {
      canvas: canvas.height,
      start: canvas.top,
      image: image.height,
      target: target.height,
      from: region.top,
      wanted: height,
    },
    resampling,
  );
  const lower = canvas.height - target.height;
  const columnsFirst = lower > 0 && lower > 2 * (canvas.width - target.width);
  const data = (columnsFirst ? byColumns : byRows)(image, across, down, background);
  return { data, width, height };
}

/** Bytes of row y of an image; the memory may be reused for the next row. */
type Rows = (y: number) => Uint8Array;

// A resize keeps one colour as it is, so that the background is the same between the two axes as before and after them.

function byRows(image: RgbImage, across: Axis, down: Axis, background: Rgb): Uint8Array {
  const touched = touchedBy(image.width, across);
  const values = new Uint8ClampedArray(3 * touched.axis.first.length);
  const source: Rows = (y) => image.data.subarray(3 * y * image.width);
  const rows: Rows = (y) => resizeRow(source(y), touched.axis, background, values);
  const columns = resizeColumns(rows, repeat(background, touched.axis.first.length), down);
  if (values.length === 3 * across.first.length) return columns;
  const [width, height] = [3 * across.first.length, down.first.length];
  const data = repeat(background, across.first.length * height);
  for (let y = 0; y < height; y++)
    data.set(columns.subarray(y * values.length, (y + 1) * values.length), y * width + 3 * touched.from);
  return data;
}

function byColumns(image: RgbImage, across: Axis, down: Axis, background: Rgb): Uint8Array {
  const width = across.first.length;
  const low = across.first[0];
  const columns = across.first[width - 1] + across.count[width - 1] - low;
  const source: Rows = (y) => image.data.subarray(3 * (y * image.width + low));
  const lower = resizeColumns(source, repeat(background, columns), down);
  const shifted = { ...across, first: across.first.map((pixel) => pixel - low) };
  const data = new Uint8Array(3 * width * down.first.length);
  for (let y = 0; y < down.first.length; y++) {
    const values = new Uint8ClampedArray(data.buffer, 3 * y * width, 3 * width);
    resizeRow(lower.subarray(3 * y * columns), shifted, background, values);
  }
  return data;
}

/** The target pixels, from `from` on, that any pixel of the image is part of; the others are background in every row. */
function touchedBy(pixels: number, axis: Axis): { from: number; axis: Axis } {
  const { first, count, weights, stride, beside } = axis;
  const from = Math.max(
    0,
    count.findIndex((taps) => taps > 0),
  );
  const end = first.indexOf(pixels);
  const to = end < 0 ? first.length : Math.max(from, end);
  return {
    from,
    axis: {
      first: first.subarray(from, to),
      count: count.subarray(from, to),
      weights: weights.subarray(from * stride, to * stride),
      stride,
      beside: beside.subarray(from, to),
    },
  };
}

function repeat(colour: Rgb, pixels: number): Uint8Array {
  return Uint8Array.from({ length: 3 * pixels }, (_, i) => colour[i % 3]);
}

/** One row, resized into `values`; `background` is the colour beside the image. */
function resizeRow(source: Uint8Array, axis: Axis, background: Rgb, values: Uint8ClampedArray): Uint8Array {
  const { first, count, weights, stride, beside } = axis;
  for (let x = 0; x < first.length; x++) {
    let r = HALF + background[0] * beside[x];
    let g = HALF + background[1] * beside[x];
    let b = HALF + background[2] * beside[x];
    const start = x * stride;
    for (let k = start, at = 3 * first[x]; k < start + count[x]; k++, at += 3) {
      const weight = weights[k];
      r = (r + Math.imul(source[at], weight)) | 0;
      g = (g + Math.imul(source[at + 1], weight)) | 0;
      b = (b + Math.imul(source[at + 2], weight)) | 0;
    }
    values[3 * x] = r >> BITS;
    values[3 * x + 1] = g >> BITS;
    values[3 * x + 2] = b >> BITS;
  }
  return new Uint8Array(values.buffer, values.byteOffset, values.length);
}

/** All columns, resized; `background` is the row above and below the image. Each row is added to all target rows that it is part of. */
function resizeColumns(
  rows: Rows,
  background: Uint8Array,
  { first, count, weights, stride, beside }: Axis,
): Uint8Array {
  const length = background.length;
  const height = first.length;
  const sums = new Int32Array(length * height);
  for (let i = 0; i < height; i++)
    for (let x = 0; x < length; x++) sums[i * length + x] = HALF + background[x] * beside[i];
  const end = first[height - 1] + count[height - 1];
  // The target rows of one source row follow one another, from `active` on.
  for (let y = first[0], active = 0; y < end; y++) {
    const row = rows(y);
    while (y >= first[active] + count[active]) active++;
    for (let i = active; i < height && first[i] <= y && y < first[i] + count[i]; i++) {
      const weight = weights[i * stride + y - first[i]];
      for (let x = 0, sum = i * length; x < length; x++, sum++) sums[sum] += Math.imul(row[x], weight);
    }
  }
  const data = new Uint8ClampedArray(sums.length);
  for (let i = 0; i < data.length; i++) data[i] = sums[i] >> BITS;
  return new Uint8Array(data.buffer);
}
