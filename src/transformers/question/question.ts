import { DesapError, mismatch } from '../../errors.js';
import { checkQuestion, checkTokens } from '../../vision/check-text.js';
import { readTextFiles, type TextFiles } from '../../vision/text-files.js';
import type { WordReader } from '../../vision/words.js';
import { FORMATS } from './formats.js';
import { IMAGE, MARKS, MarkedText } from './marked-text.js';
import { type LastTurn, TurnReader } from './turns.js';

/** Reads the question out of a prompt's ids, with the tokenizer and the chat template of the model's folder. */
export class Questions {
  readonly #text: MarkedText;
  /** Those of the folder's templates first. */
  readonly #readers: readonly TurnReader[];
  readonly #hasTemplate: boolean;
  readonly #added: ReadonlyMap<string, number>;
  /** The words of token ids. */
  readonly words: WordReader;

  private constructor({ tokenizer, addedTokens, words, names, templates }: TextFiles) {
    this.words = words;
    this.#added = new Map(addedTokens.map(({ content, id }) => [content, id]));
    const text = new MarkedText({ tokenizer, addedTokens });
    const around = [names.bos_token, names.eos_token, names.pad_token].map((token) => token ?? '').join('');
    const ends = [...new Set(`${text.decode(tokenizer.encode('').ids)}${text.of(around)}`.match(MARKS))].join('');
    this.#text = text;
    this.#readers = [...templates, ...FORMATS].flatMap((template) => TurnReader.of(template, text, ends) ?? []);
    this.#hasTemplate = templates.length > 0;
  }

  /** @throws DesapError `ERR_FILE`, `ERR_MISSING_PACKAGE` */
  static async open(folder: string): Promise<Questions> {
    return new Questions(await readTextFiles(folder, 'reading the question out of a prompt'));
  }

  /**
   * The user's own words in the last user turn: without the template's words, images, and blanks at both ends.
   * @param ids a prompt, without padding
   * @throws DesapError `ERR_VALUE` when they cannot be told from the prompt, or there are none
   */
  read(ids: readonly number[], imageToken: number): string {
    const prompt = this.#text.decode(ids, imageToken);
    const turn = this.#lastTurn(prompt);
    const words = this.#text.plain(turn?.text ?? '').trim();
    if (words !== '') return words;
    throw mismatch(
      'ERR_VALUE',
      'question',
      turn === null ? 'a prompt whose last user turn cannot be found' : 'a last user turn without text',
      'the option question',
    );
  }

  /** By the folder's own template; else by the first common format; a folder without template may have prompts without any. */
  #lastTurn(prompt: string): LastTurn | null {
    let unasked: LastTurn | null = null;
    for (const reader of this.#readers) {
      const turn = reader.read(prompt);
      if (turn?.asked) return turn;
      unasked ??= turn;
    }
    if (unasked !== null || this.#hasTemplate) return unasked;
    const isWords = (mark: string) => mark !== IMAGE && !this.#text.special.has(mark);
    return { text: prompt.replace(MARKS, (mark) => (isWords(mark) ? mark : ' ')), asked: false };
  }

  /** The id of a token that the tokenizer matches whole; undefined where it has none of this text. */
  idOf(token: string): number | undefined {
    return this.#added.get(token);
  }

  /**
   * Ids of a text without special tokens.
   * @throws DesapError `ERR_VALUE` when there are none, and more than the limit `promptTokens`
   */
  encode(text: string): number[] {
    const ids = this.#text.encode(checkQuestion(text));
    checkTokens('question', ids.length);
    if (ids.length > 0) return ids;
    throw new DesapError('ERR_VALUE', 'question: got a text without tokens, wanted a question');
  }
}
