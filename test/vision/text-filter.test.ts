/** Which words of a text stay: the rule by itself, without a tower. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { describe, expect, it } from 'vitest';
import { longTextChoice } from '../../src/vision/long-text.js';
import { cosines, filterWords, frequencies, levelled } from '../../src/vision/text-filter.js';
import { type Word, wordReader } from '../../src/vision/words.js';
import { ROOT } from '../support.js';

/** Words of some sizes, one behind the other; a negative size is a word without letters. */
function wordsOf(...sizes: number[]): Word[] {
  let from = 0;
  return sizes.map((size) => {
    const word = { from, to: from + Math.abs(size), isSaid: size > 0 };
    from = word.to;
    return word;
  });
}

const none = (count: number) => new Float64Array(count);
const keep = (scores: readonly number[], words: readonly Word[], budget: number, keepPunctuation = false) => [
  ...filterWords(Float64Array.from(scores), none(scores.length), words, { budget, keepPunctuation }).kept,
];

describe('filterWords', () => {
  it('takes words by their largest score, in the order of the text', () => {
    expect(keep([1, 5, 2, 9, 3], wordsOf(1, 1, 1, 1, 1), 3)).toEqual([1, 3, 4]);
    expect(keep([1, 0, 0, 4, 0, 2], wordsOf(1, 2, 2, 1), 3)).toEqual([3, 4, 5]);
  });

  it('of equal scores takes the first words', () => {
    expect(keep([7, 7, 7, 7, 7], wordsOf(1, 1, 1, 1, 1), 3)).toEqual([0, 1, 2]);
    expect(keep([0, 0, 0, 0], wordsOf(2, 1, 1), 3)).toEqual([0, 1, 2]);
  });

  it('keeps words whole, and stops at the first that does not fit', () => {
    // The second word has three tokens; the third, of one, would fit beside the first.
    expect(keep([9, 5, 5, 5, 1], wordsOf(1, 3, 1), 3)).toEqual([0]);
    expect(keep([9, 5, 5, 5, 1], wordsOf(1, 3, 1), 4)).toEqual([0, 1, 2, 3]);
  });

  it('cuts a first word that does not fit', () => {
    expect(keep([1, 9, 9, 9, 9, 1], wordsOf(1, 4, 1), 2)).toEqual([1, 2]);
  });

  it('keeps for a larger budget what it keeps for a smaller one', () => {
    const sizes = Array.from({ length: 12 }, (_, i) => 1 + ((i * 7) % 4));
    const words = wordsOf(...sizes);
    const scores = Array.from({ length: words[11].to }, (_, i) => ((i * 37) % 11) / 11);
    for (let budget = 1; budget < scores.length; budget++) {
      const [less, more] = [budget, budget + 1].map((own) => keep(scores, words, own));
      expect(less.length).toBeLessThanOrEqual(budget);
      expect(more).toEqual(expect.arrayContaining(less));
    }
    expect(keep(scores, words, scores.length)).toHaveLength(scores.length);
  });

  it('leaves punctuation out, unless it is wanted, or there is nothing else', () => {
    const words = wordsOf(1, -1, 1, -2);
    expect(keep([1, 9, 2, 9, 9], words, 3)).toEqual([0, 2]);
    expect(keep([1, 9, 2, 9, 9], words, 3, true)).toEqual([1, 3, 4]);
    expect(keep([3, 9, 9], wordsOf(-1, -2), 2)).toEqual([1, 2]);
  });

  it('multiplies importance by what is uncommon', () => {
    const importance = Float64Array.from([4, 2, 3]);
    const all = wordsOf(1, 1, 1);
    const rare = { budget: 2, keepPunctuation: false };
    const some = filterWords(importance, Float64Array.from([1, 0, 0.5]), all, rare);
    expect(some).toEqual({ kept: Int32Array.of(1, 2), scores: Float64Array.of(0, 2, 1.5), dropped: 1 });
    expect(filterWords(importance, Float64Array.from([1, 1, 1]), all, rare).kept).toEqual(Int32Array.of(0, 1));
  });
});

describe('importance', () => {
  it('of several windows is that of one text, whatever a window is multiplied by', () => {
    const [a, b] = [Float64Array.of(1, 2, 3), Float64Array.of(4, 0)];
    expect(levelled([a])).toEqual(a);
    expect(levelled([a, b])).toEqual(Float64Array.of(0.5, 1, 1.5, 2, 0));
    expect(levelled([a.map((value) => value * 8), b])).toEqual(levelled([a, b]));
    expect(levelled([none(2), b])).toEqual(Float64Array.of(0, 0, 2, 0));
  });

  it('by cosine is never below 0', () => {
    expect(cosines(Float32Array.of(3, 0, -1, 0, 0, 0, 3, 4), Float32Array.of(2, 0))).toEqual(
      Float64Array.of(1, 0, 0, 0.6),
    );
  });

  it('takes frequencies from 0 to 1', () => {
    expect(frequencies([4, 2], { frequency: (id) => 1 / id })).toEqual(Float64Array.of(0.25, 0.5));
    for (const bad of [Number.NaN, -0.1, 2, '1', undefined])
      expect(() => frequencies([5, 6], { frequency: (id) => (id === 6 ? (bad as number) : 0) })).toThrow(
        /^filter\.frequency: got .* for the id 6, wanted a number from 0 to 1$/,
      );
  });
});

describe('the words of a tokenizer', () => {
  const read = (folder: string) => JSON.parse(readFileSync(join(ROOT, folder, 'tokenizer.json'), 'utf8'));
  const said = (file: Record<string, unknown>, text: string) => {
    const tokenizer = new Tokenizer(file, {});
    const { ids } = tokenizer.encode(text, { add_special_tokens: false });
    return wordReader(
      tokenizer,
      file,
    )(ids).map(({ from, to, isSaid }) => {
      const word = tokenizer.decode(ids.slice(from, to)).trim();
      return isSaid ? word : `(${word})`;
    });
  };

  it('of CLIP end with </w>', () => {
    const words = said(read('test/fixtures/exports/tok77'), "What's the café — bottom-left, ... 東京?");
    expect(words).toEqual(['what', "'s", 'the', 'café', '(—)', 'bottom', '(-)', 'left', '(,)', '(...)', '東京', '(?)']);
  });

  it('of WordPiece go on with ##', () => {
    const vocab = { '[UNK]': 0, ring: 1, '##s': 2, the: 3, '?': 4, big: 5, '##ger': 6 };
    const model = { type: 'WordPiece', unk_token: '[UNK]', continuing_subword_prefix: '##', vocab };
    const file = {
      version: '1.0',
      added_tokens: [],
      normalizer: null,
      pre_tokenizer: { type: 'BertPreTokenizer' },
      model,
    };
    const decoder = { type: 'WordPiece', prefix: '##', cleanup: false };
    expect(said({ ...file, decoder, post_processor: null }, 'the bigger rings?')).toEqual([
      'the',
      'bigger',
      'rings',
      '(?)',
    ]);
  });

  it('of byte-level tokenizers begin with a blank, and punctuation stands alone', () => {
    const tokens = ['r', 'i', 'n', 'g', 'Ġ', 'b', '?', ',', 'Ġb', 'in', 'Ġbin'];
    const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
    const model = { type: 'BPE', vocab, merges: ['Ġ b', 'i n', 'Ġb in'] };
    const level = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
    const file = { version: '1.0', added_tokens: [], normalizer: null, pre_tokenizer: level, decoder: level, model };
    expect(said({ ...file, post_processor: null }, 'ring bin, bring?')).toEqual(['ring', 'bin', '(,)', 'bring', '(?)']);
  });

  it('are its tokens where it has no marks', () => {
    expect(said(read('test/fixtures/siglip'), 'what is red')).toEqual(['what', 'is', 'red']);
  });
});

describe('the options', () => {
  it('have defaults', () => {
    expect(longTextChoice({})).toEqual({ longText: 'segment', filter: null });
    const choice = longTextChoice({ longText: 'filter' }, 77);
    expect(choice.filter).toMatchObject({ maxTokens: 30, importance: undefined, keepPunctuation: false });
    expect(longTextChoice({ longText: 'filter' }, 20).filter?.maxTokens).toBe(20);
  });

  it.each<[string, object, RegExp]>([
    ['two tokens', { maxTokens: 2 }, /^filter\.maxTokens: got 2, wanted an integer from 3 to 77$/],
    ['a token and a half', { maxTokens: 1.5 }, /^filter\.maxTokens: got 1\.5, wanted/],
    ['more than the context', { maxTokens: 78 }, /^filter\.maxTokens: got 78, wanted an integer from 3 to 77$/],
    ['an unknown importance', { importance: 'x' }, /^filter\.importance: got 'x', wanted 'attention' \| 'cosine'$/],
    ['a table of frequencies', { frequency: {} }, /^filter\.frequency: got Object, wanted a function of token ids$/],
    ['punctuation in words', { keepPunctuation: 'no' }, /^filter\.keepPunctuation: got 'no', wanted true or false$/],
    ['an unknown option', { max: 4 }, /^filter: got the unknown option 'max', wanted one of maxTokens/],
  ])('refuse %s', (_, filter, message) => {
    expect(() => longTextChoice({ longText: 'filter', filter }, 77)).toThrow(message);
  });

  it('refuse a filter that nothing uses', () => {
    expect(() => longTextChoice({ longText: 'truncate', filter: {} })).toThrow(
      /^filter: got a filter beside longText: 'truncate', wanted longText: 'filter', which uses it$/,
    );
  });
});
