import { join } from 'node:path';
import { mismatch } from '../errors.js';
import { readJson, readJsonIfThere } from '../files.js';
import { type ChatTemplate, chatTemplates } from './chat-template.js';
import { makeTokenizer, type TextTokenizer } from './text-tokenizer.js';
import { type TokenizerFile, type WordReader, wordReader } from './words.js';

/** A token that the tokenizer matches as a whole, wherever its text stands. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special?: boolean;
}

/** The text files of a model folder: the tokenizer, its special tokens, and the chat templates. */
export interface TextFiles {
  readonly tokenizer: TextTokenizer;
  readonly addedTokens: readonly AddedToken[];
  /** The words of token ids. */
  readonly words: WordReader;
  /** Special tokens by their names in configs and templates: `bos_token`, `eos_token`, `image_token`, ... */
  readonly names: Readonly<Record<string, string>>;
  /** The preferred one first. */
  readonly templates: readonly ChatTemplate[];
}

/**
 * @param why what the tokenizer is needed for, in the error when its package is missing
 * @throws DesapError `ERR_FILE` for missing or unusable files, `ERR_MISSING_PACKAGE`
 */
export async function readTextFiles(folder: string, why: string): Promise<TextFiles> {
  const path = join(folder, 'tokenizer.json');
  const [file, config, map] = await Promise.all([
    readJson<TokenizerFile & { added_tokens?: readonly AddedToken[] }>(path),
    readJsonIfThere<Record<string, unknown>>(join(folder, 'tokenizer_config.json')),
    readJsonIfThere<Record<string, unknown>>(join(folder, 'special_tokens_map.json')),
  ]);
  // Older folders have the map, and a config that does not list the added tokens; there the map wins.
  const names = config?.added_tokens_decoder
    ? { ...namedTokens(map), ...namedTokens(config) }
    : { ...namedTokens(config), ...namedTokens(map) };
  const tokenizer = await makeTokenizer(path, file, config ?? {}, why);
  return {
    tokenizer,
    words: wordReader(tokenizer, file),
    addedTokens: addedTokens(path, file.added_tokens),
    names,
    templates: await chatTemplates(folder, names),
  };
}

/** @throws DesapError `ERR_FILE` */
function addedTokens(path: string, given: readonly AddedToken[] | null = []): readonly AddedToken[] {
  const isToken = (token: Partial<AddedToken> | null) =>
    Number.isSafeInteger(token?.id) && typeof token?.content === 'string';
  if (given === null || (Array.isArray(given) && given.every(isToken))) return given ?? [];
  throw mismatch('ERR_FILE', `${path}: added_tokens`, 'what are no tokens', 'a list of { id, content }');
}

/** The entries `*_token`, which are texts or objects with the text inside. */
function namedTokens(config: Record<string, unknown> | null): Record<string, string> {
  const names: Record<string, string> = {};
  const { extra_special_tokens: extra } = config ?? {};
  for (const [key, value] of Object.entries({ ...(Array.isArray(extra) ? {} : (extra ?? {})), ...config })) {
    const text = typeof value === 'object' && value !== null ? (value as { content?: unknown }).content : value;
    if (key.endsWith('_token') && typeof text === 'string') names[key] = text;
  }
  return names;
}
