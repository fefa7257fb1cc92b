/**
 * The read-out as one square product, so that ONNX Runtime can compete with the same algebra. With C the centring projector, a
 * row o of the context gives y = C (W_o o + b_o), rstd = 1 / sqrt(|y|^2 / D + epsilon), p = rstd W_vis diag(gamma) y + W_vis beta and
 * A_d = p / |p|. W_vis diag(gamma) C = U B V^T with orthogonal U and V and B [E, D] upper bidiagonal (Householder reflections from
 * both sides) gives y~ = V^T y and U^T p = rstd B y~ + U^T W_vis beta: two terms per element in place of a product with W_vis.
 */
import type { HeadWeights, LinearWeights } from '../../src/head.js';

export interface FoldedReadOut {
  /** V^T C W_o and V^T C b_o. */
  readonly out: LinearWeights;
  /** B[k][k] and B[k][k + 1], [E] each. */
  readonly diagonal: Float32Array;
  readonly superdiagonal: Float32Array;
  /** U^T W_vis beta, [E]. */
  readonly shift: Float32Array;
  /** U^T, [E, E]. */
  readonly rotation: Float32Array;
}

type Rows = Float64Array[];

/** Folds a head whose projection is narrower than its hidden states, in float64. */
export function foldReadOut({ width, projectionDim, out, postNorm, visualProjection }: HeadWeights): FoldedReadOut {
  const [gamma, beta] = [postNorm.weight, postNorm.bias];
  const projection = matrix(projectionDim, width, (i, c) => visualProjection[i * width + c]);
  const A = projection.map((row) => centred(row.map((x, c) => x * gamma[c])));
  // What U^T multiplies, [I, W_vis beta], and what V^T multiplies, C [W_o, b_o]: the right-hand sides are their last columns.
  const shifted = matrix(projectionDim, projectionDim + 1, (i, c) =>
    c < projectionDim ? Number(c === i) : dot(projection[i], beta),
  );
  const weight = matrix(width, width + 1, (i, c) => (c < width ? out.weight[i * width + c] : out.bias[i]));
  const means = weight.reduce((sum, row) => sum.map((x, c) => x + row[c] / width), new Float64Array(width + 1));
  for (const row of weight) add(row, -1, means);

  for (let k = 0; k < projectionDim; k++) {
    const left = reflection(Float64Array.from(A.slice(k), (row) => row[k]));
    for (const rows of [A, shifted]) reflectRows(rows, k, left);
    const right = reflection(A[k].slice(k + 1));
    for (const row of A.slice(k)) reflect(row.subarray(k + 1), right);
    reflectRows(weight, k + 1, right);
  }
  const columns = (rows: Rows, from: number, to: number) =>
    Float32Array.from(rows.flatMap((row) => [...row.subarray(from, to)]));
  return {
    out: { weight: columns(weight, 0, width), bias: columns(weight, width, width + 1) },
    diagonal: Float32Array.from(A, (row, k) => row[k]),
    superdiagonal: Float32Array.from(A, (row, k) => row[k + 1]),
    shift: columns(shifted, projectionDim, projectionDim + 1),
    rotation: columns(shifted, 0, projectionDim),
  };
}

function matrix(rows: number, cols: number, value: (i: number, c: number) => number): Rows {
  return Array.from({ length: rows }, (_, i) => Float64Array.from({ length: cols }, (_, c) => value(i, c)));
}

function centred(row: Float64Array): Float64Array {
  const mean = row.reduce((sum, x) => sum + x, 0) / row.length;
  return row.map((x) => x - mean);
}

function dot(x: ArrayLike<number>, y: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * y[i];
  return sum;
}

/** The unit v for which x - 2 v v^T x has nothing but its first element. */
function reflection(x: Float64Array): Float64Array {
  const v = x.slice();
  v[0] += (x[0] < 0 ? -1 : 1) * Math.hypot(...x);
  const length = Math.hypot(...v);
  return length === 0 ? v : v.map((value) => value / length);
}

/** x - 2 v v^T x, in place. */
function reflect(x: Float64Array, v: Float64Array): void {
  const twice = 2 * dot(v, x);
  for (let i = 0; i < v.length; i++) x[i] -= twice * v[i];
}

/** The same for all columns of the rows from `first` on. */
function reflectRows(rows: Rows, first: number, v: Float64Array): void {
  const sums = new Float64Array(rows[0].length);
  for (let i = 0; i < v.length; i++) add(sums, 2 * v[i], rows[first + i]);
  for (let i = 0; i < v.length; i++) add(rows[first + i], -v[i], sums);
}

function add(x: Float64Array, scale: number, y: Float64Array): void {
  for (let c = 0; c < x.length; c++) x[c] += scale * y[c];
}
