import type { TextFiles } from '../../vision/text-files.js';

/**
 * Token ids as text. Every added token (special ones, and others that `tokenizer.json` matches whole) is a mark: one character that no
 * words can spell. `<|im_start|>` that came as an id is a mark; the same letters that came as ordinary tokens are letters.
 */
export class MarkedText {
  readonly #marks = new Map<number, string>();
  readonly #contents = new Map<string, string>();
  readonly #special = new Set<string>();
  /** An ordinary token to decode behind, since decoders drop the blank in front of a first token. */
  readonly #guard: number[];
  /** Whether the tokenizer puts a blank in front of a text behind an added token, as SentencePiece did. */
  readonly #prepends: boolean;

  constructor(private readonly files: Pick<TextFiles, 'tokenizer' | 'addedTokens'>) {
    // Some tokenizers add runs of blanks, which templates and users write as ordinary text.
    const marked = files.addedTokens.filter(({ content }) => content.trim() !== '');
    for (const [i, { id, content, special }] of marked.entries()) {
      const mark = String.fromCodePoint(FIRST_MARK + i);
      this.#marks.set(id, mark);
      this.#contents.set(mark, content);
      if (special) this.#special.add(mark);
    }
    this.#guard = this.encode('a')
      .filter((id) => !this.#marks.has(id))
      .slice(-1);
    this.#prepends = false;
    this.#prepends = this.of(`${marked[0]?.content ?? ''}a`)
      .slice(IMAGE.length)
      .startsWith(' ');
  }

  /** Ids of a text, without what the tokenizer puts around a sequence. */
  encode(text: string): number[] {
    return this.files.tokenizer.encode(text, { add_special_tokens: false }).ids;
  }

  /** Ids as marked text, with {@link IMAGE} for each `imageToken`. */
  decode(ids: readonly number[], imageToken?: number): string {
    let [text, run]: [string, number[]] = ['', []];
    const flush = () => {
      const words = this.#words(run);
      text += this.#prepends && words.startsWith(' ') ? words.slice(1) : words;
      run = [];
    };
    for (const id of ids) {
      const mark = id === imageToken ? IMAGE : this.#marks.get(id);
      if (mark === undefined) {
        run.push(id);
        continue;
      }
      flush();
      text += mark;
    }
    flush();
    return text;
  }

  /** A text as its ids read: with marks, and as the tokenizer's normaliser leaves it. */
  of(text: string): string {
    return this.decode(this.encode(text));
  }

  /** Marks of the special tokens. */
  get special(): ReadonlySet<string> {
    return this.#special;
  }

  /** Marked text with the tokens' own texts. */
  plain(marked: string): string {
    return marked.replace(MARKS, (mark) => this.#contents.get(mark) ?? '');
  }

  #words(run: readonly number[]): string {
    if (run.length === 0) return '';
    const options = { skip_special_tokens: false, clean_up_tokenization_spaces: false };
    const { tokenizer } = this.files;
    const ahead = this.#guard.length > 0 ? tokenizer.decode(this.#guard, options).length : 0;
    return tokenizer
      .decode([...this.#guard, ...run], options)
      .slice(ahead)
      .replace(MARKS, '\ufffd');
  }
}

/** Marks are characters of the first supplementary plane for private use. */
const FIRST_MARK = 0xf0000;
export const MARKS = /[\u{f0000}-\u{ffffd}]/gu;

/** Stands for an image token, whether or not the tokenizer lists it. */
export const IMAGE = '\u{ffffd}';
