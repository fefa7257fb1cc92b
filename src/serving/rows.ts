import { invalid, mismatch, notFinite } from '../errors.js';
import { type FloatData, floatData, type TensorLike, widened } from '../tensor.js';

/** Rows of a language model's width, float32, finite. */
export interface Rows {
  readonly data: Float32Array;
  readonly count: number;
  readonly width: number;
}

/** As float32 in base64 they are 2^28.4 characters; a string of Node ends at 2^29. */
const MOST_NUMBERS = 2 ** 26;

/**
 * A tensor [K, D] or [1, K, D] of a caller's as rows; float32 is not copied.
 * @throws DesapError `ERR_DTYPE` for integers, `ERR_SHAPE` for no row, another width or too many rows, `ERR_NOT_FINITE`
 */
export function rowsOf(argument: string, tensor: TensorLike, width: number): Rows {
  const { dims, ...memory } = floatData(argument, tensor);
  const shape = dims.length === 3 && dims[0] === 1 ? dims.slice(1) : dims;
  if (shape.length !== 2 || shape[0] === 0 || shape[1] !== width)
    throw invalid('ERR_SHAPE', `${argument}.dims`, dims, `[K, ${width}] or [1, K, ${width}] with K of at least 1`);
  return finiteRows(argument, memory, width);
}

/**
 * Tensors [layers, K, D] of a caller's as rows of each layer.
 * @throws DesapError `ERR_DTYPE`, `ERR_SHAPE`, `ERR_NOT_FINITE`
 */
export function layersOf(argument: string, tensor: TensorLike, count: number, width: number): Rows[] {
  const { dims, ...memory } = floatData(argument, tensor);
  if (dims.length !== 3 || dims[0] < 1 || dims[1] !== count || dims[2] !== width)
    throw invalid('ERR_SHAPE', `${argument}.dims`, dims, `[layers, ${count}, ${width}]`);
  const { data } = finiteRows(argument, memory, width);
  return Array.from({ length: dims[0] }, (_, layer) => ({
    data: data.subarray(layer * count * width, (layer + 1) * count * width),
    ...{ count, width },
  }));
}

function finiteRows(argument: string, memory: { data: FloatData; half: boolean }, width: number): Rows {
  requireRoom(argument, memory.data.length);
  const data = widened(memory);
  const at = data.findIndex((value) => !Number.isFinite(value));
  if (at >= 0) throw notFinite(argument, Math.floor(at / width));
  return { data, count: data.length / width, width };
}

function requireRoom(argument: string, numbers: number): void {
  if (numbers > MOST_NUMBERS) throw mismatch('ERR_SHAPE', argument, `${numbers} numbers`, `at most ${MOST_NUMBERS}`);
}

/**
 * Each row of the first with those of the others behind it; all have as many rows.
 * @throws DesapError `ERR_SHAPE` for too many
 */
export function sideBySide(argument: string, parts: readonly Rows[]): Rows {
  const [{ count }] = parts;
  const width = parts.reduce((sum, part) => sum + part.width, 0);
  requireRoom(argument, count * width);
  const data = new Float32Array(count * width);
  let column = 0;
  for (const part of parts) {
    for (let row = 0; row < count; row++)
      data.set(part.data.subarray(row * part.width, (row + 1) * part.width), row * width + column);
    column += part.width;
  }
  return { data, count, width };
}
