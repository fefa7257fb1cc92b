/**
 * Norm without a mean: y_i = x_i / sqrt(mean(x_i^2) + epsilon) * weight, row by row. x, y: [N, D]; weight: [D].
 */
import { notFinite } from '../errors.js';
import { dot, isRepresentable, type Matrix64, matrix64, type NumberMatrix, type Numbers } from './numeric.js';

export function rmsNorm(x: NumberMatrix, weight: Numbers, epsilon: number): Matrix64 {
  const y = matrix64(x.rows, x.cols);
  for (let i = 0; i < x.rows; i++) {
    const from = i * x.cols;
    const squares = dot(x.data, from, x.data, from, x.cols);
    if (!isRepresentable(squares)) throw notFinite('x', i);
    const scale = 1 / Math.sqrt(squares / x.cols + epsilon);
    for (let c = 0; c < x.cols; c++) y.data[from + c] = x.data[from + c] * scale * weight[c];
  }
  return y;
}
