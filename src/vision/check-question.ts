import { invalid } from '../errors.js';

/**
 * A question that is one.
 * @throws DesapError `ERR_VALUE` for an empty text
 */
export function checkQuestion(question: string): string {
  if (typeof question === 'string' && question.trim() !== '') return question;
  throw invalid('ERR_VALUE', 'question', question, 'a question');
}
