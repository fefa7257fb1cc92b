import { invalid, mismatch } from '../errors.js';
import { field } from '../options.js';
import { integer, object } from '../tensor.js';

/** What {@link checkUsage} reads of an answer; of a streamed one its last chunk, with `stream_options: { include_usage: true }`. */
export interface Answered {
  readonly usage?: { readonly prompt_tokens: number } | null;
}

/**
 * Whether the server saw the prompt that was meant: the tokens of its text and K for each image. One more means an image token written in
 * the text, and P in place of K that the server took the whole picture.
 *
 * @param expected how many tokens the prompt has
 * @throws DesapError `ERR_VALUE` for another count, and for an answer without one
 */
export function checkUsage(response: Answered, expected: number): void {
  integer('expected', expected, 1, 2 ** 31 - 1);
  const usage = field('response', object('response', response, 'an answer of the server'), 'usage');
  if (typeof usage !== 'object' || usage === null)
    throw invalid('ERR_VALUE', 'response.usage', usage, 'prompt_tokens; a stream has them with include_usage');
  const tokens = field('response.usage', usage, 'prompt_tokens');
  if (tokens !== expected) throw mismatch('ERR_VALUE', 'response.usage.prompt_tokens', `${tokens}`, `${expected}`);
}
