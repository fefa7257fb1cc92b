/** Linear layer: y = x W^T + b. x: [N, in], W: [out, in], b: [out] or null, y: [N, out]. */
import { dot, type Matrix64, matrix64, type NumberMatrix, type Numbers } from './numeric.js';

export function linear(x: NumberMatrix, weight: NumberMatrix, bias: Numbers | null): Matrix64 {
  const y = matrix64(x.rows, weight.rows);
  for (let i = 0; i < x.rows; i++)
    for (let o = 0; o < weight.rows; o++)
      y.data[i * weight.rows + o] =
        dot(x.data, i * x.cols, weight.data, o * x.cols, x.cols) + (bias === null ? 0 : bias[o]);
  return y;
}
