import { merge } from '../kernels/merge.js';
import { rows, widen } from '../kernels/numeric.js';
import { select } from '../kernels/select.js';
import { shareOf } from '../prune-request.js';
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
  const { indices, source } = select(task, saliency, keep, shareOf(keep, taskShare));

  const states = widen(matrix('hidden', hidden)); // a row for each patch, after the class token's where there is one
  const { tokens, assignment, counts } = merge(rows(states, states.rows - task.length, states.rows), indices);
  return {
    tokens: tokens.data,
    choices: { kept: [...indices], source: [...source], assignment: [...assignment], count: [...counts] },
  };
}
