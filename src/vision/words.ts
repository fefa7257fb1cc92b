/** Which tokens make a word. */
import type { Tokenizer } from '@huggingface/tokenizers';

/** A word of a text: its tokens, from one on and up to another. */
export interface Word {
  readonly from: number;
  readonly to: number;
  /** Whether it has a letter or a digit. */
  readonly isSaid: boolean;
}

/** The part of tokenizer.json that says how pieces of a word are marked. */
export interface WordMarks {
  /** CLIP: `</w>`. */
  readonly end_of_word_suffix?: string | null;
  /** WordPiece: `##`. */
  readonly continuing_subword_prefix?: string | null;
}

/**
 * The words of content ids: each ends with a piece that has the tokenizer's mark for it, or in front of one that does not go on with a
 * word. Without marks every token is a word.
 */
export function wordsOfIds(
  tokenizer: Pick<Tokenizer, 'id_to_token' | 'decode'>,
  { end_of_word_suffix: suffix, continuing_subword_prefix: prefix }: WordMarks,
  ids: readonly number[],
): Word[] {
  const pieces = ids.map((id) => tokenizer.id_to_token(id) ?? '');
  const isEnd = (at: number) => {
    if (at === pieces.length - 1) return true;
    if (suffix) return pieces[at].endsWith(suffix);
    return !prefix || !pieces[at + 1].startsWith(prefix);
  };
  const words: Word[] = [];
  for (let from = 0, at = 0; at < ids.length; at++) {
    if (!isEnd(at)) continue;
    const text = tokenizer.decode(ids.slice(from, at + 1), { skip_special_tokens: false });
    words.push({ from, to: at + 1, isSaid: /[\p{L}\p{N}]/u.test(text) });
    from = at + 1;
  }
  return words;
}
