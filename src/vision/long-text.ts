/** What happens to long texts: options that every text tower has. */
import { invalid, mismatch } from '../errors.js';
import { type OptionNames, options } from '../options.js';
import { boolean, oneOf } from '../tensor.js';

/**
 * What happens to a long text. Where it is longer than the tower's context, `segment` encodes it in windows, `truncate` drops what is too
 * much, `error` refuses it. `filter` is `segment`, and of more tokens than {@link TextFilter.maxTokens} only the most important words stay.
 */
export type LongText = 'segment' | 'truncate' | 'error' | 'filter';
export const LONG_TEXT: readonly LongText[] = ['segment', 'truncate', 'error', 'filter'];

/**
 * What makes a token important: `attention`, what the end of the text pays it in the tower's last block; `cosine`, its similarity to the
 * whole text.
 */
export type TextImportance = 'attention' | 'cosine';
const IMPORTANCE: readonly TextImportance[] = ['attention', 'cosine'];

/** How `longText: 'filter'` chooses the words of a text that are compared with an image. */
export interface TextFilter {
  /**
   * Rows that a text has at most, start and end included: an integer of at least 3 and at most the tower's context. Default 30, or the
   * context where that is less.
   */
  readonly maxTokens?: number;
  /** Default `attention` for CLIP; SigLIP's words have `cosine` only. */
  readonly importance?: TextImportance;
  /** How common a token is, from 0 to 1, by its id: its importance is multiplied by 1 less that. Default: 0. */
  readonly frequency?: (id: number) => number;
  /** Whether words without a letter or digit may stay beside others; default false. */
  readonly keepPunctuation?: boolean;
}

/** What is said of long texts. */
export interface LongTextOptions {
  /** What happens to long texts; default `segment`. */
  readonly longText?: LongText;
  /** More about `longText: 'filter'`. */
  readonly filter?: TextFilter;
}

/** The same, checked. */
export interface LongTextChoice {
  readonly longText: LongText;
  /** Null unless `longText` is `filter`. */
  readonly filter: CheckedFilter | null;
}

export interface CheckedFilter extends Required<Omit<TextFilter, 'importance'>> {
  /** Undefined: the tower's default. */
  readonly importance: TextImportance | undefined;
}

const NAMES: OptionNames<TextFilter> = { maxTokens: true, importance: true, frequency: true, keepPunctuation: true };

/** Rows of a filtered text by default: start, end, and 28 that say something. */
const MAX_TOKENS = 30;
const FEWEST = 3;

/**
 * Checks what is said of long texts.
 *
 * @param context tokens that the tower takes; left out where it is not open yet
 * @throws DesapError `ERR_VALUE`
 */
export function longTextChoice(
  { longText = 'segment', filter: given }: LongTextOptions,
  context = Number.POSITIVE_INFINITY,
): LongTextChoice {
  oneOf('longText', longText, LONG_TEXT);
  const { maxTokens, importance, frequency = () => 0, keepPunctuation = false } = options('filter', given, NAMES);
  if (longText !== 'filter') {
    if (given === undefined) return { longText, filter: null };
    throw mismatch(
      'ERR_VALUE',
      'filter',
      `a filter beside longText: '${longText}'`,
      "longText: 'filter', which uses it",
    );
  }
  if (importance !== undefined) oneOf('filter.importance', importance, IMPORTANCE);
  if (typeof frequency !== 'function')
    throw invalid('ERR_VALUE', 'filter.frequency', frequency, 'a function of token ids');
  return {
    longText,
    filter: {
      maxTokens: checkCount(maxTokens ?? Math.min(MAX_TOKENS, context), context),
      importance,
      frequency,
      keepPunctuation: boolean('filter.keepPunctuation', keepPunctuation),
    },
  };
}

function checkCount(maxTokens: number, context: number): number {
  if (Number.isSafeInteger(maxTokens) && maxTokens >= FEWEST && maxTokens <= context) return maxTokens;
  const range = context === Number.POSITIVE_INFINITY ? `of at least ${FEWEST}` : `from ${FEWEST} to ${context}`;
  throw invalid('ERR_VALUE', 'filter.maxTokens', maxTokens, `an integer ${range}`);
}
