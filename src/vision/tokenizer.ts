import { dirname, join } from 'node:path';
import { isFile, readJson } from '../files.js';
import { makeTokenizer, unusable } from './text-tokenizer.js';
import { type TokenizerFile, type WordReader, wordReader } from './words.js';

/** A CLIP tokenizer: words to ids, and the special tokens that stand around them. */
export interface ClipTokenizer {
  /** Ids of a text without special tokens. */
  content(text: string): number[];
  /** The words of content ids. */
  readonly words: WordReader;
  /** Ids in front of the content, for CLIP one start-of-text token. */
  readonly start: readonly number[];
  /** The end-of-text token. */
  readonly end: number;
  /** `model_max_length` of tokenizer_config.json, where it is a length. */
  readonly maxLength: number | null;
}

/** Where tokenizer_config.json states no limit, it holds 1e30. */
const NO_LIMIT = 1e6;

/**
 * Opens `tokenizer.json` (and `tokenizer_config.json` beside it, where there is one) with @huggingface/tokenizers.
 *
 * @param path the file, or the folder that it lies in
 * @throws DesapError `ERR_FILE` when it is missing or unusable, `ERR_MISSING_PACKAGE`
 */
export async function openTokenizer(path: string): Promise<ClipTokenizer> {
  const file = path.endsWith('.json') ? path : join(path, 'tokenizer.json');
  const beside = join(dirname(file), 'tokenizer_config.json');
  const config = (await isFile(beside)) ? await readJson(beside) : {};
  const json = await readJson<TokenizerFile>(file);
  const tokenizer = await makeTokenizer(file, json, config, 'tokenising text');
  // An empty text is its special tokens: start-of-text, end-of-text.
  const special = tokenizer.encode('').ids;
  const end = special.at(-1);
  if (end === undefined) throw unusable(file, new Error('it adds no end-of-text token'));
  const { model_max_length: length } = config as { model_max_length?: number };
  return {
    content: (text) => tokenizer.encode(text, { add_special_tokens: false }).ids,
    words: wordReader(tokenizer, json),
    start: special.slice(0, -1),
    end,
    maxLength: typeof length === 'number' && length < NO_LIMIT ? length : null,
  };
}
