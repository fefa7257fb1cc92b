import { types } from 'node:util';
import type { AnalyzeTimings, PruneOutput, PruneRequest, PruneTimings } from './devices/driver.js';
import { float32, Tensor } from './tensor.js';

/** What was kept of one image for one question. K kept tokens, P patches, T text tokens, D width. */
export interface PruneResult {
  /** [K, D] (or [K, F] for own features), float32 or float16 as the features were. An input of the next session as it is. */
  readonly tokens: Tensor;
  /** [K] patch of each token, ascending. */
  readonly indices: Int32Array;
  /** [K] which map chose it: 0 task, 1 saliency. */
  readonly source: Uint8Array;
  /** [P] the position in `indices` of the token that each patch went into; -1 for dropped patches when merging is off. */
  readonly assignment: Int32Array;
  /** [K] how many patches are in each token. */
  readonly counts: Int32Array;
  /** A_t (null without a text) and the saliency map that chose the rest, [P] each; with `maps`. */
  readonly maps?: { readonly task: Float32Array | null; readonly saliency: Float32Array };
  /** m, M_V and M_T of eq. 3, [P, T] each (the last two null for the alignment `mean`); with `matrices`. */
  readonly matrices?: {
    readonly similarity: Tensor;
    readonly visualAlignment: Tensor | null;
    readonly textAlignment: Tensor | null;
  };
  /** Milliseconds per stage, of the question and of the image that it was asked about. */
  readonly timings: AnalyzeTimings & PruneTimings;
}

/** A device's output as tensors. */
export function pruneResult({ tokens, maps, matrices, ...output }: PruneOutput, request: PruneRequest): PruneResult {
  const pairs = [output.assignment.length, request.text?.rows ?? 0];
  const pairsOrNull = (data: Float32Array | null) => data && float32(data, pairs);
  const shape = [request.keep, tokens.length / request.keep];
  return {
    tokens: types.isFloat32Array(tokens) ? float32(tokens, shape) : new Tensor('float16', tokens, shape),
    ...output,
    ...(maps && { maps }),
    ...(matrices && {
      matrices: {
        similarity: float32(matrices.similarity, pairs),
        visualAlignment: pairsOrNull(matrices.visualAlignment),
        textAlignment: pairsOrNull(matrices.textAlignment),
      },
    }),
  };
}
