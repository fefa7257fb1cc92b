import { merge } from '../kernels/merge.js';
import { rows, widen } from '../kernels/numeric.js';
import { topK } from '../kernels/top-k.js';
import { matrix } from '../tensor.js';
import type { GoldenCase } from './golden-case.js';

/**
 * The decisions of a golden case and its tokens, as the reference makes them from maps that are given: K * taskShare patches of
 * the largest task relevance, then the most salient of the rest, then merging.
 */
export function decide(
  { hidden, options }: GoldenCase,
  { task, saliency }: { task: Float32Array; saliency: Float32Array },
): Pick<GoldenCase, 'choices'> & { tokens: Float64Array } {
  const { keep, taskShare } = options;
  const fromTask = Math.floor(keep * taskShare + 0.5);
  const taken = new Uint8Array(task.length);
  const byTask = topK(task, fromTask, null);
  for (const patch of byTask) taken[patch] = 1;
  const kept = Int32Array.from([...byTask, ...topK(saliency, keep - fromTask, taken)]).sort();

  const states = widen(matrix('hidden', hidden)); // a row for each patch, after the class token's where there is one
  const { tokens, assignment, counts } = merge(rows(states, states.rows - task.length, states.rows), kept);
  const source = Array.from(kept, (patch) => 1 - taken[patch]);
  return { tokens: tokens.data, choices: { kept: [...kept], source, assignment: [...assignment], count: [...counts] } };
}
