/**
 * The score of a visual token that several patches go into: means[u] is the mean of scores[i] over the patches with unit[i] = u.
 * scores, unit: [N], every unit from 0 to `units` - 1 at least once; means: [units].
 */
import type { Numbers } from './numeric.js';

export function pool(scores: Numbers, unit: Int32Array, units: number): Float64Array {
  const means = new Float64Array(units);
  const counts = new Int32Array(units);
  for (let i = 0; i < unit.length; i++) {
    means[unit[i]] += scores[i];
    counts[unit[i]]++;
  }
  return means.map((sum, u) => sum / counts[u]);
}
