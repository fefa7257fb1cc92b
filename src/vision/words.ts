/** Which tokens make a word. */

/** A word of a text: its tokens, from one on and up to another. */
export interface Word {
  readonly from: number;
  readonly to: number;
  /** Whether it has a letter or a digit. */
  readonly isSaid: boolean;
}

/** The part of tokenizer.json that says how pieces of a word are marked. */
export interface TokenizerFile {
  readonly model?: {
    /** `BPE`, `WordLevel`, ... */
    readonly type?: string;
    /** CLIP: `</w>`. */
    readonly end_of_word_suffix?: string | null;
    /** WordPiece: `##`. */
    readonly continuing_subword_prefix?: string | null;
  };
}

/** What is used of a tokenizer of @huggingface/tokenizers, whose types users need not have. */
export interface PieceTokenizer {
  id_to_token(id: number): string | undefined;
  encode(text: string, options: { add_special_tokens: boolean }): { readonly ids: number[] };
  decode(ids: number[], options: { skip_special_tokens: boolean }): string;
}

/** Finds the words of a sequence of content ids. */
export type WordReader = (ids: readonly number[]) => Word[];

/** What a piece behind a blank begins with: of byte-level tokenizers, and of SentencePiece. */
const BLANK = /^[Ġ▁]/;
const PUNCTUATION = /^(?=[!-~]+$)[^a-z0-9]+$/i;
const SAID = /[\p{L}\p{N}]/u;

/** The words of a tokenizer, by the marks that its pieces have; without any, every piece is a word. */
export function wordReader(tokenizer: PieceTokenizer, { model }: TokenizerFile): WordReader {
  const endsWord = borderRule(tokenizer, model ?? {});
  return (ids) => {
    const pieces = ids.map((id) => tokenizer.id_to_token(id) ?? '');
    const words: Word[] = [];
    for (let from = 0, at = 0; at < ids.length; at++) {
      if (at < ids.length - 1 && !endsWord(pieces[at], pieces[at + 1])) continue;
      const text = tokenizer.decode(ids.slice(from, at + 1), { skip_special_tokens: false });
      words.push({ from, to: at + 1, isSaid: SAID.test(text) });
      from = at + 1;
    }
    return words;
  };
}

/** Whether a word ends between two pieces. */
function borderRule(
  tokenizer: PieceTokenizer,
  { end_of_word_suffix: suffix, continuing_subword_prefix: prefix }: NonNullable<TokenizerFile['model']>,
): (piece: string, next: string) => boolean {
  if (suffix) return (piece) => piece.endsWith(suffix);
  if (prefix) return (_, next) => !next.startsWith(prefix);
  return marksBlanks(tokenizer)
    ? (piece, next) => BLANK.test(next) || PUNCTUATION.test(next) || PUNCTUATION.test(piece.replace(BLANK, ''))
    : () => true;
}

/** Whether pieces tell that a blank stands in front of them. A vocabulary of a few words may lack the letters to see it by. */
function marksBlanks(tokenizer: PieceTokenizer): boolean {
  try {
    const { ids } = tokenizer.encode('a b', { add_special_tokens: false });
    return ids.some((id) => BLANK.test(tokenizer.id_to_token(id) ?? ''));
  } catch {
    return false;
  }
}
