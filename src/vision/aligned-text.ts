import { notFinite } from '../errors.js';
import type { Backend, TextEmbeddings } from '../index.js';
import { float32, integer, matrix, type Tensor, vector, widened } from '../tensor.js';

/** A text as the kernel `align` takes it: unit rows [T, E], and the unit vector of its end [E]. */
export interface AlignedText {
  readonly text: Tensor;
  readonly endOfText: Float32Array;
}

/** @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_NOT_FINITE`, named `text` or `endOfText` */
export async function alignedText(backend: Backend, { embeddings, endOfText }: TextEmbeddings): Promise<AlignedText> {
  const given = matrix('text', embeddings);
  const { rows, cols } = given;
  const text = await unitRows('text', backend, float32(widened(given), [rows, cols]));
  if (endOfText === undefined || typeof endOfText === 'number') {
    const row = endOfText === undefined ? rows - 1 : integer('endOfText', endOfText, 0, rows - 1);
    return { text, endOfText: (text.data as Float32Array).slice(row * cols, (row + 1) * cols) };
  }
  const end = await unitRows('endOfText', backend, float32(vector('endOfText', endOfText, cols), [1, cols]));
  return { text, endOfText: end.data as Float32Array };
}

/** The kernel, whose data errors have the caller's name for the rows. */
function unitRows(argument: string, backend: Backend, x: Tensor): Promise<Tensor> {
  return backend.unitRows({ x }).catch((error: { row?: number }) => {
    throw error.row === undefined ? error : notFinite(argument, error.row);
  });
}
