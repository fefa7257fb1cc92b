/** Rows, a text and its relevance, in memory and as files for programs in other languages. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { float32, type Tensor } from '../../src/tensor.js';
import { normal } from '../data.js';

/** How patches are alike: `smooth`, each like those around it, as those of images are; `independent`. */
export type Likeness = 'smooth' | 'independent';

export interface Shape {
  /** Rows and columns of patches. */
  readonly grid: readonly [rows: number, columns: number];
  readonly width: number;
}

export interface Inputs {
  /** [P, F]. */
  readonly x: Tensor;
  /** [F]. */
  readonly text: Float32Array;
  /** [P] from 0 to 1, the least relevant being 0: how OpenVINO GenAI makes it of the cosines with the text. */
  readonly relevance: Float32Array;
}

/** Standard deviation of what a smooth row does not share with its neighbours, which share 1. */
const OWN_PART = 0.3;
/** Rows and columns on each side over which smooth rows are averaged. */
const REACH = 2;
/** OpenVINO GenAI's. */
const SMALL = 1e-6;

export const patchesOf = ({ grid: [rows, columns] }: Shape) => rows * columns;

/** Seeded inputs of a shape. */
export function inputs(shape: Shape, likeness: Likeness): Inputs {
  const { width } = shape;
  const P = patchesOf(shape);
  const own = normal(1, P * width);
  const x = likeness === 'smooth' ? smoothed(own, shape) : own;
  const text = normal(2, width);
  const cosines = Float64Array.from({ length: P }, (_, i) => cosine(x.subarray(i * width, (i + 1) * width), text));
  const [least, most] = [Math.min(...cosines), Math.max(...cosines)];
  const relevance = Float32Array.from(cosines, (one) => (one - least) / (most - least + SMALL));
  return { x: float32(x, [P, width]), text, relevance };
}

/** As bench/peers reads them. */
export async function writeInputs(folder: string, { x, text, relevance }: Inputs): Promise<void> {
  const files = { 'rows.f32': x.data as Float32Array, 'text.f32': text, 'relevance.f32': relevance };
  for (const [name, { buffer, byteOffset, byteLength }] of Object.entries(files))
    await writeFile(join(folder, name), new Uint8Array(buffer, byteOffset, byteLength));
}

/** Each row averaged over those near it in the grid, and a part of its own. */
function smoothed(own: Float32Array, { grid: [rows, columns], width }: Shape): Float32Array {
  const alongColumns = averaged(own, { outer: rows, extent: columns, inner: width });
  const both = averaged(alongColumns, { outer: 1, extent: rows, inner: columns * width });
  const scale = 2 * REACH + 1; // a mean of n normal numbers deviates by 1 / sqrt(n)
  return both.map((shared, at) => scale * shared + OWN_PART * own[at]);
}

/** Means over the neighbours along the middle extent of [outer, extent, inner]; beyond the ends there are none. */
function averaged(
  x: Float32Array,
  { outer, extent, inner }: { readonly outer: number; readonly extent: number; readonly inner: number },
): Float32Array {
  const means = new Float32Array(x.length);
  for (let o = 0; o < outer; o++)
    for (let e = 0; e < extent; e++) {
      const [first, last] = [Math.max(0, e - REACH), Math.min(extent - 1, e + REACH)];
      const to = (o * extent + e) * inner;
      for (let from = first; from <= last; from++) {
        const at = (o * extent + from) * inner;
        for (let i = 0; i < inner; i++) means[to + i] += x[at + i] / (last - first + 1);
      }
    }
  return means;
}

function cosine(a: Float32Array, b: Float32Array): number {
  let [product, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    product += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return product / Math.sqrt(aa * bb);
}
