import { softScore } from './vqa.js';

/**
 * How an answer is judged. `exact`: it is the answer; `any`: it is one of several; `yes-no`: it says yes or no; `choice`: it is the letter
 * or the text of the right choice; `vqa`: the soft score over the answers of several people.
 */
export type Scoring = (typeof SCORINGS)[number];
export const SCORINGS = ['exact', 'any', 'yes-no', 'choice', 'vqa'] as const;

/** What is known of the right answer. */
export interface Key {
  readonly scoring: Scoring;
  /** One, or for `any` and `vqa` several; for `choice` one of the choices. */
  readonly answers: readonly string[];
  /** `choice` alone. */
  readonly choices?: readonly string[];
}

/** From 0, wrong, to 1, right. Only `vqa` gives values between. */
export function score(answer: string, { scoring, answers, choices = [] }: Key): number {
  switch (scoring) {
    case 'vqa':
      return softScore(answer, answers);
    case 'yes-no':
      return Number(yesOrNo(answer) === plain(answers[0]));
    case 'choice':
      return Number(chosen(answer, choices) === choices.indexOf(answers[0]));
    default:
      return Number(answers.some((one) => plain(one) === plain(answer)));
  }
}

/** Without a period at its end, spaces around it, and capitals. */
export function plain(text: string): string {
  return text.trim().replace(/\.$/, '').trim().toLowerCase();
}

/** As POPE reads answers: no where the first sentence has the word no or not, else yes; here in any case, and with any mark behind it. */
function yesOrNo(answer: string): 'yes' | 'no' {
  const [sentence] = answer.split('.');
  return /\b(no|not)\b/i.test(sentence) ? 'no' : 'yes';
}

/** `B`, `B.`, `(B) ...`, `b: ...`; `the answer is b.`, `Answer: (B)`; `the answer is B because ...`, where a small a is no letter. */
const LETTERS = [
  /^\(?([A-Z])(?:[).:]|\s*$)/i,
  /\banswer(?: is:?|:) \(?([A-Z])\)?(?:[.,:]|\s*$)/i,
  /\b[Aa]nswer is:? \(?([A-Z])\b/,
];

/** Which choice an answer names, by its letter or its text; -1 for none of them. */
function chosen(answer: string, choices: readonly string[]): number {
  const text = answer.trim();
  const byText = choices.findIndex((choice) => plain(choice) === plain(text));
  if (byText >= 0) return byText;
  const letters = LETTERS.map((form) => form.exec(text)?.[1]);
  const letter = letters.find((one) => one !== undefined);
  return letter === undefined ? -1 : letterAt(letter);
}

const letterAt = (letter: string) => letter.toUpperCase().charCodeAt(0) - 'A'.charCodeAt(0);

/** The letter of a choice. */
export function letterOf(choice: number): string {
  return String.fromCharCode('A'.charCodeAt(0) + choice);
}
