/** Long questions in the language model's embedding space. */

import { mismatch } from '../errors.js';
import type { TextEmbeddings } from '../index.js';
import { rowsOf } from '../methods/matrix.js';
import { float32, matrix, widened } from '../tensor.js';
import type { CheckedFilter } from './long-text.js';
import { meanDirection } from './task-text.js';
import { cosines, type FilteredText, filterWords, frequencies } from './text-filter.js';
import type { Word } from './words.js';

/** A question as rows of an embedding table, with the tokens that they are of. */
export interface QuestionTokens extends TextEmbeddings {
  /** Token ids of the rows. */
  readonly ids: readonly number[];
  /** The words that they make, in their order. */
  readonly words: readonly Word[];
}

/**
 * The rows of the words that are most like the mean of the whole question, which stays its end. Rows of a table know nothing of each
 * other, and have no attention.
 *
 * @throws DesapError `ERR_VALUE` for embeddings without ids and words, and for a frequency beyond 0 to 1
 */
export function filteredQuestion(
  question: TextEmbeddings | QuestionTokens,
  filter: CheckedFilter,
): TextEmbeddings & { readonly filtered?: FilteredText } {
  if (!('words' in question && 'ids' in question))
    throw mismatch(
      'ERR_VALUE',
      'embedQuestion',
      'embeddings alone',
      "ids and words beside them, for longText: 'filter'",
    );
  const { ids, words } = question;
  const given = matrix('question', question.embeddings, { rows: ids.length });
  const { rows: count, cols } = given;
  if (count <= filter.maxTokens) return question;
  const all = widened(given);
  const whole = meanDirection({ data: all, rows: count, cols });
  const filtered = filterWords(cosines(all, whole), frequencies(ids, filter), words, {
    ...filter,
    budget: filter.maxTokens,
  });
  const rows = rowsOf({ data: all, cols }, filtered.kept).data;
  return { embeddings: float32(rows, [filtered.kept.length, cols]), endOfText: whole, filtered };
}
