/**
 * The two-stage selection: the `taskKeep` largest task scores, then the largest saliencies of the other entries; ties as in topK.
 * A map from which nothing is taken may be null. task, saliency: [P]; indices: [K] ascending; source: [K], 0 task, 1 saliency.
 */
import type { Numbers } from './numeric.js';
import { topK } from './top-k.js';

export function select(
  task: Numbers | null,
  saliency: Numbers | null,
  keep: number,
  taskKeep: number,
): { indices: Int32Array; source: Uint8Array } {
  const byTask = task ? topK(task, taskKeep, null, 'task') : [];
  const taken = new Uint8Array((task ?? saliency)?.length ?? 0);
  for (const index of byTask) taken[index] = 1;
  const bySaliency = saliency ? topK(saliency, keep - taskKeep, taken, 'saliency') : [];
  const indices = Int32Array.from([...byTask, ...bySaliency]).sort();
  return { indices, source: Uint8Array.from(indices, (index) => 1 - taken[index]) };
}
