import { describe, invalid, mismatch } from '../errors.js';
import { limits } from '../limits.js';

/**
 * A text that says something, and no more than the limit `textBytes`.
 * @throws DesapError `ERR_VALUE`
 */
export function checkText(argument: string, text: string, wanted = 'a text'): string {
  if (typeof text !== 'string' || text.trim() === '') throw invalid('ERR_VALUE', argument, text, wanted);
  const { textBytes } = limits();
  const bytes = Buffer.byteLength(text);
  if (bytes <= textBytes) return text;
  throw mismatch('ERR_VALUE', argument, `${bytes} bytes of text`, `at most ${textBytes} (limits({ textBytes }))`);
}

/**
 * No more tokens of a text than the limit `promptTokens`.
 * @throws DesapError `ERR_VALUE`
 */
export function checkTokens(argument: string, tokens: number): void {
  const { promptTokens } = limits();
  if (tokens > promptTokens)
    throw mismatch('ERR_VALUE', argument, `${tokens} tokens`, `at most ${promptTokens} (limits({ promptTokens }))`);
}

/** More tokens than any text tower takes at a time. */
const MOST_TOKENS = 2 ** 17;

/**
 * The tokens that a text tower takes at a time, as its files say.
 * @param special how many of them say nothing
 * @throws DesapError `ERR_GRAPH` for none besides these, and for more than any tower takes
 */
export function checkContext(name: string, tokens: number, special: number): number {
  if (tokens > special && tokens <= MOST_TOKENS) return tokens;
  const got = `a context of ${describe(tokens)} tokens`;
  throw mismatch('ERR_GRAPH', name, got, `more than ${special}, and at most ${MOST_TOKENS}`);
}

/** A question that is one. */
export function checkQuestion(question: string): string {
  return checkText('question', question, 'a question');
}
