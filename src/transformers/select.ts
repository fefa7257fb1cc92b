import { invalid } from '../errors.js';
import type { Backend } from '../index.js';
import { float32 } from '../tensor.js';
import type { KeptTokens } from './family.js';
import type { CallOptions } from './options.js';

/** Scores of M visual tokens, and the rows that stand for them. */
export interface Candidates {
  /** A_t, or null when the saliency map alone decides. */
  readonly task: Float32Array | null;
  /** A_s. */
  readonly saliency: Float32Array;
  /** [M, W]. */
  readonly features: Float32Array;
  /** What tokens are compared by when they are merged, [M, W'], where rows hold more than that; null: the features. */
  readonly alike: Float32Array | null;
}

/**
 * Selection and merging (steps 8 and 9 of DeSAP) over single kernels, for scores that no pruning head has made: the share of K
 * with the largest task scores, then the most salient of the rest; every other token joins the kept one that it is most like.
 *
 * @throws DesapError `ERR_VALUE` for keep and taskShare
 */
export async function select(backend: Backend, candidates: Candidates, options: CallOptions): Promise<KeptTokens> {
  const { task, saliency, features, alike } = candidates;
  const count = saliency.length;
  const width = features.length / count;
  const keep = keepCount(options.keep as number, count);
  const fromTask = task === null ? 0 : Math.floor(keep * shareOf(options) + 0.5);

  const relevant = task === null ? [] : await backend.topK({ scores: task, k: fromTask });
  const excluded = new Uint8Array(count);
  for (const index of relevant) excluded[index] = 1;
  const salient = await backend.topK({ scores: saliency, k: keep - fromTask, excluded });
  const indices = Int32Array.from([...relevant, ...salient]).sort();
  const source = Uint8Array.from(indices, (index) => 1 - excluded[index]);

  if (options.merge ?? true) {
    const compared = alike ?? features;
    const rows = float32(compared, [count, compared.length / count]);
    const { tokens, assignment, counts } = await backend.merge({ features: rows, kept: indices });
    const means = alike === null ? (tokens.data as Float32Array) : meanRows(features, width, assignment, counts);
    return { indices, source, assignment, counts, features: means };
  }
  const own = new Float32Array(keep * width);
  const assignment = new Int32Array(count).fill(-1);
  for (const [k, index] of indices.entries()) {
    own.set(features.subarray(index * width, (index + 1) * width), k * width);
    assignment[index] = k;
  }
  return { indices, source, assignment, counts: new Int32Array(keep).fill(1), features: own };
}

/** The mean of the rows [M, W] that are assigned to each kept token: [K, W]. */
function meanRows(rows: Float32Array, width: number, assignment: Int32Array, counts: Int32Array): Float32Array {
  const sums = new Float64Array(counts.length * width);
  for (const [token, k] of assignment.entries())
    for (let c = 0; c < width; c++) sums[k * width + c] += rows[token * width + c];
  return Float32Array.from(sums, (sum, i) => sum / counts[Math.floor(i / width)]);
}

/**
 * The share of K that the task map chooses.
 * @throws DesapError `ERR_VALUE`
 */
export function shareOf({ taskShare = 0.5 }: CallOptions): number {
  if (taskShare >= 0 && taskShare <= 1) return taskShare;
  throw invalid('ERR_VALUE', 'taskShare', taskShare, 'a number from 0 to 1');
}

function keepCount(keep: number, count: number): number {
  const whole = keep > 0 && keep < 1 ? Math.max(1, Math.floor(keep * count + 0.5)) : keep;
  if (Number.isInteger(whole) && whole >= 1 && whole <= count) return whole;
  throw invalid('ERR_VALUE', 'keep', keep, `a count from 1 to ${count}, or a fraction between 0 and 1`);
}
