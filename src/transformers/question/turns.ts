import { mismatch } from '../../errors.js';
import type { ChatTemplate } from '../../vision/chat-template.js';
import { type Literals, literalsOf } from './literals.js';
import { IMAGE, MARKS, type MarkedText } from './marked-text.js';

/** The last user turn of a prompt. */
export interface LastTurn {
  /** Marked text without images. */
  readonly text: string;
  /** Whether the words that begin an answer are what the prompt ends with. */
  readonly asked: boolean;
}

/**
 * Finds the last user turn in prompts of one format.
 *
 * A prompt is: a beginning (with or without a system text), user and assistant in turn, and the words that begin an answer. The
 * template says what stands between the texts. A boundary with a mark is searched anywhere: a mark is in nobody's words, unless
 * somebody typed the special token itself. A boundary of plain words counts only where three things hold: the whole prompt is then a
 * conversation, it ends in a user turn, and the boundary does not stand between quotation marks.
 */
export class TurnReader {
  readonly #asked: RegExp | null;
  readonly #closed: RegExp | null;
  readonly #images: RegExp;
  readonly #first: Literal;
  readonly #before: Literal | null;
  readonly #after: Literal | null;
  readonly #toAnswer: Literal;
  readonly #toUser: Literal;
  readonly #toUserAgain: Literal | null;

  private constructor(
    private readonly literals: Literals,
    text: MarkedText,
    private readonly ends: string,
  ) {
    const literal = (words: string) => new Literal(words, text.of(words), ends);
    const { first, system, toAnswer, toUser, toUserAgain, asked, closed } = literals;
    this.#first = literal(first);
    this.#before = system && literal(system.before);
    this.#after = system && literal(system.after);
    this.#toAnswer = literal(toAnswer);
    this.#toUser = literal(toUser);
    this.#toUserAgain = toUserAgain === null ? null : literal(toUserAgain);
    this.#asked = atEnd(text.of(asked));
    this.#closed = atEnd(text.of(closed));

    const written = new Set(text.of(Object.values({ ...literals, ...system }).join(' ')).match(MARKS));
    const around = [...text.special].filter((mark) => !written.has(mark) && !ends.includes(mark)).join('');
    this.#images = new RegExp(`\\s*(?:[${around}${IMAGE}]\\s*)*${IMAGE}(?:\\s*[${around}${IMAGE}])*\\s*`, 'gu');
  }

  /**
   * @param ends marks of the tokens that begin, end and pad sequences
   * @returns null for a template that does not write a user's text
   */
  static of(template: ChatTemplate, text: MarkedText, ends: string): TurnReader | null {
    const literals = literalsOf(template);
    return literals && new TurnReader(literals, text, ends);
  }

  /**
   * @param prompt marked text
   * @returns null for a prompt that is not of this format
   * @throws DesapError `ERR_VALUE` for one that can be read in several ways
   */
  read(prompt: string): LastTurn | null {
    // Processors put special tokens and blanks around image tokens: all of it is one blank here, or the paragraph that it ends.
    const whole = prompt.replace(this.#images, (image) => (/^\s*\n\s*\n/.test(image) ? '\n\n' : ' '));
    const asked = this.#asked?.exec(whole);
    const end = asked ?? this.#closed?.exec(whole);
    const talk = end ? whole.slice(0, end.index) : whole;
    const gap = asked?.[1] ?? '';

    const opened = this.#opening(talk, asked ? gap : null);
    if (opened === null) return null;
    const { start, answers } = this.#lastTurn(talk, opened, gap);
    if (asked) return { text: this.#ownWords(talk.slice(start), start === opened), asked: true };
    // Without the words that ask for an answer the turn ends where one begins, or with the prompt.
    if (answers.length > 1) throw ambiguous('more than one answer begins behind it');
    return { text: this.#ownWords(talk.slice(start, answers[0]), start === opened), asked: false };
  }

  /**
   * Where the first user's text begins.
   * @param end the blanks at the prompt's end; null for a prompt that does not ask for an answer
   */
  #opening(talk: string, end: string | null): number | null {
    const gap = end ?? '';
    const [first, before, after] = [this.#first, this.#before, this.#after];
    const plain = first.atStart(talk);
    const system = before && before.core !== '' && before.core !== first.core ? before.atStart(talk, true) : null;
    const behindSystem = system === null ? undefined : after?.find(talk, system, gap);
    if (behindSystem) return behindSystem.end;
    if (plain !== null) return plain;
    // A system text without mark, a part of a conversation, or a beginning that the template would not have written.
    const found = [after, this.#toUser, first]
      .flatMap((literal) => literal?.find(talk, 0, end) ?? [])
      .filter(({ start }) => this.#isApart(talk, start));
    return found.length === 0 ? null : Math.min(...found.map((place) => place.end));
  }

  /** Whether a blank, or the end of a sequence, or nothing at all, parts a place from what is in front of it. */
  #isApart(talk: string, at: number): boolean {
    const blank = `[\\s${this.ends}]`;
    return (
      new RegExp(`(^|${blank})$`, 'u').test(talk.slice(0, at)) || new RegExp(`^${blank}`, 'u').test(talk.slice(at))
    );
  }

  /** Where the last user's text begins, and where answers to it begin. */
  #lastTurn(talk: string, opened: number, gap: string): { start: number; answers: number[] } {
    // Where special tokens end some of the answers, words do not.
    const certain = this.#toUser.find(talk, opened, null) !== undefined;
    const toUser = (from: number) => this.#toUser.find(talk, from, certain ? null : gap);
    const toAnswer = (from: number) => this.#toAnswer.find(talk, from, gap);
    let start = opened;
    for (;;) {
      const answer = toAnswer(start);
      const next = answer && toUser(answer.end);
      const turn = next ?? this.#toUserAgain?.find(talk, start, null);
      if (!turn) break;
      if (!certain && [answer, next].some((place) => quoted(talk, opened, place)))
        throw ambiguous('the words that begin a turn stand between quotation marks');
      start = turn.end;
    }
    if (start !== opened && !certain && toUser(start))
      throw ambiguous('the words that begin a user turn stand in it once more');
    const answers: number[] = [];
    for (let at = toAnswer(start); at; at = toAnswer(at.end)) answers.push(at.start);
    return { start, answers };
  }

  /** A user turn's text, which must not begin with a system text that nothing marks as such. */
  #ownWords(text: string, isFirst: boolean): string {
    const { system } = this.literals;
    const [before, after] = [this.#before, this.#after];
    const unmarked = before && after && before.core === this.#first.core;
    if (unmarked && (isFirst || system?.inLastTurn) && after.find(text.trim(), 0, ''))
      throw ambiguous('its beginning may be a system text, which the format does not mark');
    return text;
  }
}

interface Place {
  readonly start: number;
  readonly end: number;
}

/** Words of a template between two texts. */
class Literal {
  /** Pattern of the words without blanks, and without the tokens that begin and end sequences, in front and behind. */
  readonly core: string;
  readonly #hasMark: boolean;
  readonly #separated: boolean;
  /** Blanks in front, as the template writes them, and behind, as the tokenizer leaves them. */
  readonly #blanks: { readonly ahead: string; readonly behind: string };
  readonly #trail: string;

  /**
   * @param words as the template writes them
   * @param marked as the tokenizer leaves them
   * @param ends marks of the tokens that begin, end and pad sequences
   */
  constructor(
    words: string,
    marked: string,
    private readonly ends: string,
  ) {
    const separator = new RegExp(`^[\\s${ends}]*`, 'u').exec(marked)![0];
    this.core = pattern(marked.slice(separator.length));
    this.#hasMark = MARK.test(marked.slice(separator.length));
    this.#separated = MARK.test(separator);
    this.#blanks = { ahead: /^\s*/.exec(words)![0], behind: /\s*$/.exec(marked)![0] };
    this.#trail = this.#hasMark || !/\s$/.test(words) || this.core === '' ? '\\s*' : '(?:\\s+|$)';
  }

  /**
   * Where the text behind it begins, when it stands at the start of a prompt.
   * @param exact whether the template's own blanks follow
   */
  atStart(talk: string, exact = false): number | null {
    const trail = exact ? escaped(this.#blanks.behind) : '\\s*';
    const found = new RegExp(`^[\\s${this.ends}]*${this.core}${trail}`, 'u').exec(talk);
    return found === null ? null : found[0].length;
  }

  /**
   * The next place where it stands.
   * @param gap blanks that may stand in front of plain words beside the template's own; null to find it only where special tokens
   *   are part of it, which words cannot be
   */
  find(talk: string, from: number, gap: string | null): Place | undefined {
    const lead = this.#lead(gap);
    if (lead === null || lead + this.core === '') return undefined;
    const search = new RegExp(lead + this.core + this.#trail, 'gu');
    search.lastIndex = from;
    const found = search.exec(talk);
    return found ? { start: found.index, end: found.index + found[0].length } : undefined;
  }

  #lead(gap: string | null): string | null {
    const { ends } = this;
    const separator = `[\\s${ends}]*[${ends}][\\s${ends}]*`;
    if (this.#separated) return separator;
    if (this.#hasMark) return '\\s*';
    if (this.core === '') return gap === null ? null : escaped(this.#blanks.ahead);
    const separators = ends === '' ? [] : [separator];
    if (gap === null) return separators[0] ?? null;
    // Blanks in front of plain words are those of the template or of the prompt's end, since users write them otherwise.
    return `(?:${[...separators, escaped(this.#blanks.ahead), escaped(gap)].join('|')})`;
  }
}

const MARK = new RegExp(MARKS.source, 'u');

/** The end of a prompt; the first group is the blanks in front of the words. Null where there are no words. */
function atEnd(marked: string): RegExp | null {
  if (marked.trim() === '') return null;
  return new RegExp(`(\\s*)${pattern(marked.trim())}\\s*$`, 'u');
}

/** Words and marks in a row: blanks between words, and maybe beside marks. */
function pattern(marked: string): string {
  const parts = marked.match(new RegExp(`${MARKS.source}|[^\\s\\u{f0000}-\\u{ffffd}]+`, 'gu')) ?? [];
  return parts
    .map((part, i) => {
      const besideMark = i === 0 || MARK.test(part) || MARK.test(parts[i - 1]);
      return `${i === 0 ? '' : besideMark ? '\\s*' : '\\s+'}${escaped(part)}`;
    })
    .join('');
}

function escaped(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&');
}

const QUOTES: readonly [string, string][] = [
  ['"', '"'],
  ['“', '”'],
  ['«', '»'],
  ['`', '`'],
];

/** Whether a quotation that began in front of a place ends behind it. */
function quoted(talk: string, from: number, place: Place | undefined): boolean {
  if (!place) return false;
  const [ahead, behind] = [talk.slice(from, place.start), talk.slice(place.end)];
  return QUOTES.some(([open, close]) => {
    const opened = ahead.split(open).length - 1;
    const ended = open === close ? opened - (opened % 2) : ahead.split(close).length - 1;
    return opened > ended && behind.includes(close);
  });
}

function ambiguous(why: string): Error {
  return mismatch(
    'ERR_VALUE',
    'question',
    `a prompt whose last user turn can be read in more than one way: ${why}`,
    'the option question',
  );
}
