/** Float64 building blocks of the reference kernels. */
import { type FloatMatrix, halfToFloat } from '../tensor.js';

/** A float64 matrix, row-major. */
export interface Matrix64 {
  readonly data: Float64Array;
  readonly rows: number;
  readonly cols: number;
}

/** Numbers that the reference kernels read: float64 between kernels, float32 at the boundary. */
export type Numbers = Float32Array | Float64Array;

/** A matrix of the reference path. */
export interface NumberMatrix {
  readonly data: Numbers;
  readonly rows: number;
  readonly cols: number;
}

export function matrix64(rows: number, cols: number): Matrix64 {
  return { data: new Float64Array(rows * cols), rows, cols };
}

/** The checked input matrix in float64; binary16 bits become numbers. */
export function widen(x: FloatMatrix): Matrix64 {
  const data = x.half ? Float64Array.from(x.data, halfToFloat) : Float64Array.from(x.data);
  return { data, rows: x.rows, cols: x.cols };
}

/** Rows [from, to) of a matrix, not copied. */
export function rows(x: Matrix64, from: number, to: number): Matrix64 {
  return { data: x.data.subarray(from * x.cols, to * x.cols), rows: to - from, cols: x.cols };
}

/** Row i of a matrix, not copied. */
export function row(x: Matrix64, i: number): Float64Array {
  return x.data.subarray(i * x.cols, (i + 1) * x.cols);
}

/** The sum of all rows. */
export function sumOfRows(x: NumberMatrix): Float64Array {
  const sum = new Float64Array(x.cols);
  for (let i = 0; i < x.rows; i++) for (let c = 0; c < x.cols; c++) sum[c] += x.data[i * x.cols + c];
  return sum;
}

/** sum_c a[aFrom + c] b[bFrom + c] over `count` elements. */
export function dot(a: Numbers, aFrom: number, b: Numbers, bFrom: number, count: number): number {
  let sum = 0;
  for (let c = 0; c < count; c++) sum += a[aFrom + c] * b[bFrom + c];
  return sum;
}

/** Softmax in place over `count` elements from `from`. */
export function softmax(x: Float64Array, from = 0, count = x.length): void {
  let max = Number.NEGATIVE_INFINITY;
  for (let i = from; i < from + count; i++) max = Math.max(max, x[i]);
  let sum = 0;
  for (let i = from; i < from + count; i++) sum += x[i] = Math.exp(x[i] - max);
  for (let i = from; i < from + count; i++) x[i] /= sum;
}

/** The largest finite float32: beyond it a value has left the range that every backend shares. */
const FLOAT32_MAX = 3.4028234663852886e38;

/** Whether a sum of squares is a number that float32 can hold. */
export function isRepresentable(sum: number): boolean {
  return sum <= FLOAT32_MAX;
}
