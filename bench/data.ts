/** Seeded inputs at the LLaVA-1.5 shape; random weights scaled like a trained encoder's. */
import { float32, type Tensor } from '../src/tensor.js';
import { normal, randomHead } from '../test/support.js';
import { LLAVA } from './harness.js';

export { normal };

export function tensor(seed: number, rows: number, cols: number, scale = 1): Tensor {
  return float32(normal(seed, rows * cols, scale), [rows, cols]);
}

/** Rows of unit length, as alignment takes them. */
export function unitTensor(seed: number, rows: number, cols: number): Tensor {
  const x = normal(seed, rows * cols);
  for (let i = 0; i < rows; i++) {
    const row = x.subarray(i * cols, (i + 1) * cols);
    const length = Math.hypot(...row);
    for (let c = 0; c < cols; c++) row[c] /= length;
  }
  return float32(x, [rows, cols]);
}

export const head = () => randomHead(1, LLAVA);
