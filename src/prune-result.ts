import { types } from 'node:util';
import type { AnalyzeTimings, PruneOutput, PruneRequest, PruneTimings } from './devices/driver.js';
import { type MatrixTensors, matrixTensors } from './devices/kernel-api.js';
import { saidOf } from './methods/choice.js';
import { requireFinite } from './methods/matrix.js';
import type { Choice, MethodChoice } from './methods/method.js';
import { float32, floatToHalf, Tensor } from './tensor.js';

/** What was kept of one image for one question. K kept tokens, P patches, T text tokens, D width. */
export interface PruneResult {
  /** [K, D] (or [K, F] for own features), float32 or float16 as the features were. An input of the next session as it is. */
  readonly tokens: Tensor;
  /** [K] patch of each token, ascending but for a method with `layout: 'public'`. */
  readonly indices: Int32Array;
  /** [K] what chose it: 0 the task map, 1 its complement (saliency or diversity). Of another method: docs/methods.md. */
  readonly source: Uint8Array;
  /** [P] the position in `indices` of the token that each patch went into; -1 for dropped patches when merging is off. */
  readonly assignment: Int32Array;
  /** [K] how many patches are in each token. */
  readonly counts: Int32Array;
  /** A_t (null without a text) and the saliency map that chose the rest, [P] each; with `maps`. */
  readonly maps?: { readonly task: Float32Array | null; readonly saliency: Float32Array };
  /** The matrices of eq. 3; with `matrices`. */
  readonly matrices?: MatrixTensors;
  /** What a method in place of DeSAP's own says of its choice. */
  readonly choice?: MethodChoice;
  /** Milliseconds per stage (of another method its whole choice, as `select`), of the question and of the image that it was asked about. */
  readonly timings: AnalyzeTimings & PruneTimings;
}

/** A device's output as tensors. */
export function pruneResult({ tokens, maps, matrices, ...output }: PruneOutput, request: PruneRequest): PruneResult {
  const dims = [request.keep, tokens.length / request.keep];
  return {
    tokens: types.isFloat32Array(tokens) ? float32(tokens, dims) : new Tensor('float16', tokens, dims),
    ...output,
    ...(maps && { maps }),
    ...(matrices && { matrices: matrixTensors(matrices, output.assignment.length, request.text?.rows ?? 0) }),
  };
}

/**
 * What a method chose, as the pruner gives it.
 *
 * @param spent milliseconds of the choice and of its merging
 * @param isHalf whether tokens become float16
 * @throws DesapError `ERR_NOT_FINITE`
 */
export function methodResult(
  chosen: Choice,
  spent: Pick<PruneTimings, 'select' | 'merge'>,
  isHalf = false,
): PruneResult {
  const { kept: indices, source, assignment, counts, tokens } = chosen;
  requireFinite('tokens', tokens);
  const dims = [tokens.rows, tokens.cols];
  return {
    tokens: isHalf
      ? new Tensor('float16', Uint16Array.from(tokens.data, floatToHalf), dims)
      : float32(tokens.data, dims),
    ...{ indices, source, assignment, counts, choice: saidOf(chosen) },
    timings: { waiting: 0, normalize: 0, project: 0, attention: 0, saliency: 0, readOut: 0, align: 0, ...spent },
  };
}

/** What says which tokens were kept, each by its position. */
type Kept = Pick<PruneResult, 'indices' | 'source' | 'assignment' | 'counts' | 'choice'>;

/** The same tokens in the order that the choice has for them, which is then theirs: `layout: 'public'`. */
export function inPublicOrder<R extends Kept>(kept: R, choice: MethodChoice): R {
  const { order } = choice;
  const positions = new Int32Array(order.length);
  order.forEach((k, position) => {
    positions[k] = position;
  });
  return {
    ...kept,
    indices: order.map((k) => kept.indices[k]),
    source: Uint8Array.from(order, (k) => kept.source[k]),
    counts: order.map((k) => kept.counts[k]),
    assignment: kept.assignment.map((k) => (k < 0 ? k : positions[k])),
    choice: { ...choice, order: order.map((_, position) => position) },
  };
}

/** A tensor [.., K, W] with its K rows in another order. */
export function rowsInOrder({ type, data, dims }: Tensor, order: Int32Array): Tensor {
  const [K, W] = dims.slice(-2);
  const rows = data as Float32Array;
  const own = rows.slice();
  for (let from = 0; from < rows.length; from += K * W)
    order.forEach((k, position) => {
      own.set(rows.subarray(from + k * W, from + (k + 1) * W), from + position * W);
    });
  return new Tensor(type as 'float32', own, dims);
}
