import { types } from 'node:util';
import type { AnalyzeTimings, PruneOutput, PruneRequest, PruneTimings } from './devices/driver.js';
import { type MatrixTensors, matrixTensors } from './devices/kernel-api.js';
import { float32, Tensor } from './tensor.js';

/** What was kept of one image for one question. K kept tokens, P patches, T text tokens, D width. */
export interface PruneResult {
  /** [K, D] (or [K, F] for own features), float32 or float16 as the features were. An input of the next session as it is. */
  readonly tokens: Tensor;
  /** [K] patch of each token, ascending. */
  readonly indices: Int32Array;
  /** [K] what chose it: 0 the task map, 1 its complement (saliency or diversity). */
  readonly source: Uint8Array;
  /** [P] the position in `indices` of the token that each patch went into; -1 for dropped patches when merging is off. */
  readonly assignment: Int32Array;
  /** [K] how many patches are in each token. */
  readonly counts: Int32Array;
  /** A_t (null without a text) and the saliency map that chose the rest, [P] each; with `maps`. */
  readonly maps?: { readonly task: Float32Array | null; readonly saliency: Float32Array };
  /** The matrices of eq. 3; with `matrices`. */
  readonly matrices?: MatrixTensors;
  /** Milliseconds per stage, of the question and of the image that it was asked about. */
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
