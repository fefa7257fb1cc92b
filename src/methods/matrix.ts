/** Matrices of methods, and the products of them that run on a device. */
import type { Backend } from '../devices/kernel-api.js';
import { notFinite } from '../errors.js';
import type { LinearWeights } from '../head.js';
import { matrix, type TensorLike, widened } from '../tensor.js';

/** A float32 matrix, row-major. */
export interface Matrix {
  readonly data: Float32Array;
  readonly rows: number;
  readonly cols: number;
}

/** As kernels take it. */
export function tensor({ data, rows, cols }: Matrix): TensorLike {
  return { data, dims: [rows, cols] };
}

/** What a kernel gave. */
export function matrixOf({ data, dims: [rows, cols] }: TensorLike): Matrix {
  return { data: data as Float32Array, rows, cols };
}

/**
 * What a caller gave, as it is or widened to float32.
 * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_NOT_FINITE`
 */
export function finiteMatrix(argument: string, given: TensorLike): Matrix {
  const { rows, cols, ...float } = matrix(argument, given);
  const own = { data: widened(float), rows, cols };
  requireFinite(argument, own);
  return own;
}

/** @throws DesapError `ERR_NOT_FINITE` with the first row at fault */
export function requireFinite(argument: string, { data, cols }: Matrix): void {
  for (let at = 0; at < data.length; at++)
    if (!Number.isFinite(data[at])) throw notFinite(argument, Math.floor(at / cols));
}

/** One behind the other, in memory of their own. */
export function concatenated(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Some rows of a matrix, copied. */
export function rowsOf({ data, cols }: Pick<Matrix, 'data' | 'cols'>, which: ArrayLike<number>): Matrix {
  const own = new Float32Array(which.length * cols);
  for (let i = 0; i < which.length; i++) own.set(data.subarray(which[i] * cols, (which[i] + 1) * cols), i * cols);
  return { data: own, rows: which.length, cols };
}

/** sum += weight x_row. */
export function addTo(sum: Float64Array, { data, cols }: Matrix, row: number, weight: number): void {
  const from = row * cols;
  for (let c = 0; c < cols; c++) sum[c] += weight * data[from + c];
}

/** The mean of the rows. */
export function meanRow({ data, rows, cols }: Matrix): Float64Array {
  const mean = new Float64Array(cols);
  for (let i = 0; i < rows; i++) for (let c = 0; c < cols; c++) mean[c] += data[i * cols + c] / rows;
  return mean;
}

/** The patches' rows of hidden states, which may begin with the class token's; nothing is copied. */
export function withoutClassToken({ data, rows, cols }: Matrix, classToken: boolean): Matrix {
  const first = Number(classToken);
  return { data: data.subarray(first * cols), rows: rows - first, cols };
}

/** x W^T + b, [rows, out]. */
export async function linear(backend: Backend, x: Matrix, { weight, bias }: LinearWeights): Promise<Matrix> {
  const layer = { weight: { data: weight, dims: [weight.length / x.cols, x.cols] }, bias };
  return matrixOf(await backend.linear({ x: tensor(x), ...layer }));
}

/** x y^T, [x.rows, y.rows]. */
export async function products(backend: Backend, x: Matrix, y: Matrix): Promise<Matrix> {
  return matrixOf(await backend.linear({ x: tensor(x), weight: tensor(y) }));
}

/** Rows of unit length. */
export async function unitRows(backend: Backend, x: Matrix): Promise<Matrix> {
  return matrixOf(await backend.unitRows({ x: tensor(x) }));
}

/** Cosines of each row of x and each of y, [x.rows, y.rows]. */
export async function cosines(backend: Backend, x: Matrix, y: Matrix): Promise<Matrix> {
  return products(backend, await unitRows(backend, x), await unitRows(backend, y));
}

/** Layer norm of each row. */
export async function layerNorm(backend: Backend, x: Matrix, norm: LinearWeights, epsilon: number): Promise<Matrix> {
  return matrixOf(await backend.layerNorm({ x: tensor(x), ...norm, epsilon }));
}
