/** Rows of unit length: y_i = x_i / max(|x_i|, 1e-12). x, y: [N, E]. */
import { notFinite } from '../errors.js';
import { dot, isRepresentable, type Matrix64, matrix64, type NumberMatrix } from './numeric.js';

export function unitRows(x: NumberMatrix): Matrix64 {
  const y = matrix64(x.rows, x.cols);
  for (let i = 0; i < x.rows; i++) {
    const from = i * x.cols;
    const squares = dot(x.data, from, x.data, from, x.cols);
    if (!isRepresentable(squares)) throw notFinite('x', i);
    const length = Math.max(Math.sqrt(squares), 1e-12);
    for (let c = 0; c < x.cols; c++) y.data[from + c] = x.data[from + c] / length;
  }
  return y;
}
