import type { PruneResult } from '../index.js';

/**
 * The mean of the rows [P, W] that are assigned to each kept token: [K, W]. The merge kernel averages the columns that it compares;
 * features may have further ones, which no kernel sees.
 */
export function meanRows(
  rows: Float32Array,
  width: number,
  { assignment, counts }: Pick<PruneResult, 'assignment' | 'counts'>,
): Float32Array {
  const sums = new Float64Array(counts.length * width);
  for (const [token, k] of assignment.entries())
    if (k >= 0) for (let c = 0; c < width; c++) sums[k * width + c] += rows[token * width + c];
  return Float32Array.from(sums, (sum, i) => sum / counts[Math.floor(i / width)]);
}
