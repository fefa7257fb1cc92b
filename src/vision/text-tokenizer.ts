/** The tokenizer of a `tokenizer.json`, whose failures are refusals that name the file. */
import { DesapError, messageOf, mismatch } from '../errors.js';
import { optional } from '../optional.js';
import type { PieceTokenizer, TokenizerFile } from './words.js';

export interface TextTokenizer extends PieceTokenizer {
  /** Every id is one: what the vocabulary has no token for is left out by BPE, as Hugging Face's tokenizers do, and refused by others. */
  encode(text: string, options?: { add_special_tokens: boolean }): { readonly ids: number[] };
  token_to_id(token: string): number | undefined;
}

/**
 * Makes a tokenizer of @huggingface/tokenizers. That package checks few of the files' fields when it opens them, and fails on others once
 * a text is read: then this says so too.
 *
 * @param path what error messages call the file
 * @param why what the tokenizer is needed for, in the error when its package is missing
 * @throws DesapError `ERR_FILE` for an unusable file, `ERR_MISSING_PACKAGE`; its methods `ERR_FILE`, and `encode` `ERR_VALUE`
 */
export async function makeTokenizer(
  path: string,
  file: TokenizerFile,
  config: object,
  why: string,
): Promise<TextTokenizer> {
  const { Tokenizer } = await optional(() => import('@huggingface/tokenizers'), '@huggingface/tokenizers', why);
  const usable = <T>(use: () => T): T => {
    try {
      return use();
    } catch (cause) {
      throw unusable(path, cause);
    }
  };
  const tokenizer = usable(() => new Tokenizer(file, config));
  return {
    encode(text, options) {
      const ids = usable(() => tokenizer.encode(text, options).ids);
      if (ids.every(isId)) return { ids };
      if (file.model?.type === 'BPE') return { ids: ids.filter(isId) };
      throw mismatch(
        'ERR_VALUE',
        'text',
        'characters without a token',
        `a text of the tokens of ${path}, which has none for what is unknown`,
      );
    },
    decode: (ids, options) => usable(() => tokenizer.decode(ids, options)),
    id_to_token: (id) => usable(() => tokenizer.id_to_token(id)),
    token_to_id: (token) => usable(() => tokenizer.token_to_id(token)),
  };
}

const isId = (id: unknown) => Number.isSafeInteger(id) && (id as number) >= 0;

/** The error for a file that the tokenizer's package, or what is built upon it, cannot work with. */
export function unusable(path: string, cause: unknown): DesapError {
  if (cause instanceof DesapError) return cause;
  return new DesapError('ERR_FILE', `${path}: not a usable tokenizer: ${messageOf(cause)}`, { cause });
}
