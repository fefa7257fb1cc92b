/**
 * The soft score of VQA, and how its official evaluation reads answers. It is applied to every answer; the official program leaves
 * answers as they are where all people said the same.
 */

/** Removed where they touch a space, or where the text has a number with a comma; else they become a space. */
const PUNCTUATION = [...';/[]"{}()=+\\_-><@`,?!'];
const NUMBER_WITH_COMMA = /\d,\d/;
/** Those of decimal fractions stay. */
const PERIOD = /\.(?!\d)/g;

const NUMBERS = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten'];
const DIGITS: ReadonlyMap<string, string> = new Map([
  ['none', '0'],
  ...NUMBERS.map((word, value) => [word, String(value)] as const),
]);
const ARTICLES: ReadonlySet<string> = new Set(['a', 'an', 'the']);

/** Contractions that are known with one of their apostrophes missing. */
const CONTRACTIONS = `
  ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll
  how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't
  she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
  something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
  wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
  why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've`;
const WHOLE: ReadonlyMap<string, string> = new Map(
  CONTRACTIONS.trim()
    .split(/\s+/)
    .flatMap((word) =>
      [...word.matchAll(/'/g)].map(({ index }) => [word.slice(0, index) + word.slice(index + 1), word] as const),
    ),
);

/** An answer as it is compared: lower case, without punctuation and articles, digits for number words, contractions with apostrophes. */
export function normalized(answer: string): string {
  const text = answer.replace(/[\n\t]/g, ' ').trim();
  return withoutPunctuation(text)
    .toLowerCase()
    .split(/\s+/)
    .map((word) => DIGITS.get(word) ?? word)
    .filter((word) => word !== '' && !ARTICLES.has(word))
    .map((word) => WHOLE.get(word) ?? word)
    .join(' ');
}

function withoutPunctuation(text: string): string {
  const hasNumber = NUMBER_WITH_COMMA.test(text);
  const stripped = PUNCTUATION.reduce((rest, mark) => {
    const isApart = hasNumber || text.includes(`${mark} `) || text.includes(` ${mark}`);
    return rest.replaceAll(mark, isApart ? '' : ' ');
  }, text);
  return stripped.replace(PERIOD, '');
}

/**
 * min(1, m / 3), where m of the other people say the same: the mean over leaving each of the people out.
 * @param people the answers that people gave
 */
export function softScore(answer: string, people: readonly string[]): number {
  const given = normalized(answer);
  const agrees: number[] = people.map((person) => Number(normalized(person) === given));
  const agreeing = agrees.reduce((total, one) => total + one, 0);
  const scores = agrees.map((own) => Math.min(1, (agreeing - own) / 3));
  return scores.reduce((total, score) => total + score, 0) / people.length;
}
