/**
 * Layer norm: y_i = (x_i - mean(x_i)) / sqrt(var(x_i) + epsilon) * weight + bias, row by row, biased variance.
 * x, y: [N, D]; weight, bias: [D].
 */
import { notFinite } from '../errors.js';
import { isRepresentable, type Matrix64, matrix64, type NumberMatrix, type Numbers } from './numeric.js';

export function layerNorm(x: NumberMatrix, weight: Numbers, bias: Numbers, epsilon: number): Matrix64 {
  const y = matrix64(x.rows, x.cols);
  for (let i = 0; i < x.rows; i++) {
    const from = i * x.cols;
    let mean = 0;
    for (let c = 0; c < x.cols; c++) mean += x.data[from + c];
    mean /= x.cols;
    let squares = 0;
    for (let c = 0; c < x.cols; c++) squares += (x.data[from + c] - mean) ** 2;
    if (!isRepresentable(squares)) throw notFinite('x', i);
    const scale = 1 / Math.sqrt(squares / x.cols + epsilon);
    for (let c = 0; c < x.cols; c++) y.data[from + c] = (x.data[from + c] - mean) * scale * weight[c] + bias[c];
  }
  return y;
}
