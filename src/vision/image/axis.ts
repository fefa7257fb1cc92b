/** A filter h(x) that is zero beyond `support`; x is in pixels of the source or, where those are larger, of the target. */
interface Filter {
  readonly support: number;
  readonly at: (x: number) => number;
}

const sinc = (x: number) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

/** Keys' cubic convolution with a = -1/2. */
function cubic(x: number): number {
  const d = Math.abs(x);
  if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
  return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
}

/** A Hamming window over a sinc; Pillow has its two constants in float32. */
function hamming(x: number): number {
  if (Math.abs(x) >= 1) return 0;
  return sinc(x) * (Math.fround(0.54) + Math.fround(0.46) * Math.cos(Math.PI * x));
}

/** Pillow's resampling numbers, as configurations store them: nearest (no filter), Lanczos, bilinear, bicubic, box, Hamming. */
const FILTERS: readonly (Filter | null)[] = [
  null,
  { support: 3, at: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
  { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  { support: 2, at: cubic },
  { support: 0.5, at: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  { support: 1, at: hamming },
];

/** The number of Pillow's resampling numbers. */
export const RESAMPLINGS = FILTERS.length;

/** Weights are integers in units of 2^-22: bytes times weights, summed up, stay inside 32 bits. */
export const BITS = 22;
const ONE = 1 << BITS;

/**
 * Numbers of rows or columns: of the canvas, of the image on it (which begins at `start`), of the whole result, and of the part of the
 * result that is wanted (which begins at `from`).
 */
export interface Line {
  readonly canvas: number;
  readonly start: number;
  readonly image: number;
  readonly target: number;
  readonly from: number;
  readonly wanted: number;
}

/**
 * What each wanted target pixel i is made of: `count[i]` pixels of the image, from its pixel `first[i]` on, with the weights from
 * `i * stride` on; and the canvas beside the image with the weight `beside[i]`. First and last pixels never decrease with i.
 */
export interface Axis {
  readonly first: Int32Array;
  readonly count: Int32Array;
  readonly weights: Int32Array;
  readonly stride: number;
  readonly beside: Int32Array;
}

/**
 * One axis of a resize.
 *
 * Target pixel i has its centre at c = (i + 1/2) s, s = canvas / target. When s > 1 the filter is stretched by s, so that it covers all
 * of what it shrinks. Source pixel j has the weight h((j + 1/2 - c) / max(s, 1)); the weights of a target pixel sum to one.
 */
export function axisOf(line: Line, resampling: number): Axis {
  const scale = line.canvas / line.target;
  const filter = FILTERS[resampling];
  const stretch = Math.max(scale, 1);
  const stride = filter ? 2 * Math.ceil(filter.support * stretch) + 1 : 1;
  const axis: Axis = {
    first: new Int32Array(line.wanted),
    count: new Int32Array(line.wanted),
    weights: new Int32Array(line.wanted * Math.min(stride, line.image)),
    stride: Math.min(stride, line.image),
    beside: new Int32Array(line.wanted),
  };
  if (!filter) return nearest(line, scale, axis);
  const reach = filter.support * stretch;
  const exact = new Float64Array(Math.min(stride, line.canvas));
  for (let i = 0; i < line.wanted; i++) {
    const centre = (line.from + i + 0.5) * scale;
    const low = Math.max(0, Math.floor(centre - reach + 0.5));
    const high = Math.min(line.canvas, Math.floor(centre + reach + 0.5));
    let sum = 0;
    for (let j = low; j < high; j++) {
      exact[j - low] = filter.at((j - centre + 0.5) * (1 / stretch));
      sum += exact[j - low];
    }
    begin(axis, i, low, line);
    for (let j = low; j < high; j++) {
      const weight = (exact[j - low] / (sum || 1)) * ONE;
      add(axis, i, j, Math.trunc(weight + (weight < 0 ? -0.5 : 0.5)), line);
    }
  }
  return axis;
}

function nearest(line: Line, scale: number, axis: Axis): Axis {
  // The centre is summed up and not multiplied, as Pillow does: on the edge of a pixel the rounding decides.
  let centre = 0.5 * scale;
  for (let i = -line.from; i < line.wanted; i++, centre += scale) {
    if (i < 0) continue;
    const pixel = Math.min(Math.floor(centre), line.canvas - 1);
    begin(axis, i, pixel, line);
    add(axis, i, pixel, ONE, line);
  }
  return axis;
}

/** Target pixel i begins at a pixel of the canvas: in the image, or at the end of it that is nearer. */
function begin(axis: Axis, i: number, pixel: number, { start, image }: Line): void {
  axis.first[i] = Math.min(Math.max(pixel - start, 0), image);
}

function add(axis: Axis, i: number, pixel: number, weight: number, { start, image }: Line): void {
  if (pixel < start || pixel >= start + image) axis.beside[i] += weight;
  else axis.weights[i * axis.stride + axis.count[i]++] = weight;
}
