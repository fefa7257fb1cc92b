/** A question's rows of the language model's embedding table, as they are compared with an image's. */
import { mismatch, naming } from '../errors.js';
import type { TextEmbeddings } from '../index.js';
import { type NumberMatrix, sumOfRows } from '../kernels/numeric.js';
import { unitRows } from '../kernels/unit-rows.js';
import { float32, matrix, vector, widened } from '../tensor.js';

/**
 * Rows as wide as the visual ones: where features are packed with further columns, the text has zeros there. Their end is the given one;
 * else the mean of all rows, as an embedding of an end token would know nothing of the others.
 *
 * @param columns of the visual rows
 * @throws DesapError `ERR_SHAPE` for columns behind that are not zeros; `ERR_NOT_FINITE`
 */
export function taskText({ embeddings, endOfText }: TextEmbeddings, columns: number): TextEmbeddings {
  const text = matrix('question', embeddings);
  const width = Math.min(text.cols, columns);
  const rows = narrowed(widened(text), text.cols, width);
  const end = endOfText ?? meanDirection({ data: rows, rows: text.rows, cols: width });
  return {
    embeddings: float32(rows, [text.rows, width]),
    endOfText: typeof end === 'number' ? end : narrowed(vector('endOfText', end), end.length, width),
  };
}

/** The sum of a text's rows, each at unit length: it has the direction of their mean, and is made a unit row itself. */
export function meanDirection(text: NumberMatrix): Float32Array {
  return Float32Array.from(naming('question', () => sumOfRows(unitRows(text))));
}

/** The first columns of rows whose others are zeros. */
function narrowed(rows: Float32Array, from: number, to: number): Float32Array {
  if (from <= to) return rows;
  if (rows.some((value, i) => i % from >= to && value !== 0))
    throw mismatch('ERR_SHAPE', 'question', `${from} columns`, `${to}, or zeros in the columns behind`);
  return rows.filter((_, i) => i % from < to);
}
