import type { Tensor } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import { concatenated } from '../methods/matrix.js';
import { float32, floatData, widened } from '../tensor.js';

/** What a file hands out of each visual token besides its features: [M, width], or [layers, M, width]. */
export interface FurtherRows {
  /** One matrix [M, width] of each layer. */
  readonly layers: readonly Float32Array[];
  readonly width: number;
  readonly isStacked: boolean;
}

/**
 * @param tokens M
 * @param about the output's name, and the file's
 * @throws DesapError `ERR_GRAPH` for an output that has not one row for each visual token
 */
export function furtherRows(
  output: Tensor,
  tokens: number,
  about: { readonly name: string; readonly file: string },
): FurtherRows {
  const { dims, type } = output;
  const isStacked = dims.length === 3;
  const fits = (dims.length === 2 || isStacked) && dims.at(-2) === tokens && (type === 'float32' || type === 'float16');
  if (!fits)
    throw new DesapError(
      'ERR_GRAPH',
      `${about.file}: got the output ${about.name} ${type} [${dims.join(', ')}] beside the features of ${tokens} visual tokens, wanted a row for each of them: [${tokens}, width], or [layers, ${tokens}, width]`,
    );
  const data = widened(floatData(about.name, output));
  const width = dims[dims.length - 1];
  const count = isStacked ? dims[0] : 1;
  const layers = Array.from({ length: count }, (_, i) => data.subarray(i * tokens * width, (i + 1) * tokens * width));
  return { layers, width, isStacked };
}

/** The same of other tokens: one matrix [K, width] of each layer. */
export function stacked(layers: readonly Float32Array[], { width, isStacked }: FurtherRows): Tensor {
  const rows = layers[0].length / width;
  return float32(concatenated(layers), isStacked ? [layers.length, rows, width] : [rows, width]);
}
