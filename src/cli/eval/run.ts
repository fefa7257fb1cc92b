/** Asks the questions. */
import { DesapError, type DesapErrorCode } from '../../errors.js';
import { ALL, cellOf, keyOf, type Plan } from './cells.js';
import type { Examinee, Parts, Reply, Sight } from './examinee.js';
import type { Answered, Journal, Outcome, Skipped } from './journal.js';
import type { EvalQuestion } from './questions.js';
import { score } from './scoring.js';

/** What came of all questions. */
export interface Asked {
  readonly answered: readonly Answered[];
  readonly skipped: readonly Skipped[];
}

/** What is wrong with one question or its picture. All else stops an evaluation. */
const OF_A_QUESTION: ReadonlySet<DesapErrorCode> = new Set([
  'ERR_FILE',
  'ERR_VALUE',
  'ERR_SHAPE',
  'ERR_DTYPE',
  'ERR_NOT_FINITE',
]);
/** So many questions in a row that are skipped for one reason: it is not the questions. */
const SAME_REASON = 10;

/**
 * Asks each question with all visual tokens and with every row of the plan; the picture is encoded once. A question counts for all rows,
 * or it is skipped. Those that the journal has are not asked again.
 *
 * @param step is called behind each question that is asked
 * @throws DesapError what stops an evaluation; `ERR_VALUE` where one reason skips question after question
 */
export async function askAll(
  questions: readonly EvalQuestion[],
  plan: Plan,
  { examinee, journal, step }: { examinee: Examinee; journal: Journal; step(): void },
): Promise<Asked> {
  const answered: Answered[] = [];
  const skipped: Skipped[] = [];
  let row = 0;
  for (const question of questions) {
    const before = journal.answered.get(question.line);
    if (before !== undefined) {
      answered.push(before);
      continue;
    }
    const entry = await askOne(question, plan, examinee);
    await journal.append(entry);
    step();
    if ('results' in entry) {
      answered.push(entry);
      row = 0;
      continue;
    }
    row = skipped.at(-1)?.skipped === entry.skipped ? row + 1 : 1;
    skipped.push(entry);
    if (row < SAME_REASON) continue;
    throw new DesapError('ERR_VALUE', `${SAME_REASON} questions in a row, to line ${entry.line}: ${entry.skipped}`);
  }
  return { answered, skipped };
}

async function askOne(question: EvalQuestion, plan: Plan, examinee: Examinee): Promise<Answered | Skipped> {
  const { line, type } = question;
  try {
    const sight = await examinee.see(question.image);
    try {
      return { line, ...(type !== undefined && { type }), results: await resultsOf(question, plan, sight) };
    } finally {
      sight.dispose();
    }
  } catch (error) {
    if (error instanceof DesapError && OF_A_QUESTION.has(error.code)) return { line, skipped: error.message };
    throw error;
  }
}

async function resultsOf(
  question: EvalQuestion,
  { methods, amounts, positions }: Plan,
  sight: Sight,
): Promise<Answered['results']> {
  const results: Record<string, Outcome> = { [ALL]: outcome(question, [await sight.whole(question)]) };
  const pairs = amounts.flatMap((amount) => methods.map((method) => ({ ...amount, method })));
  const forms = rotated(positions, question.line);
  for (const { label: keep, budget, method } of rotated(pairs, question.line)) {
    const replies: (readonly Reply[])[] = [];
    for (const how of method.draws(question.line))
      replies.push(await sight.pruned(question, { ...how, ...budget }, forms));
    for (const [i, form] of forms.entries())
      results[keyOf(cellOf(method.label, keep, form))] = outcome(
        question,
        replies.map((reply) => reply[i]),
      );
  }
  return results;
}

/** Another one first for each question: what comes first is slower. */
function rotated<T>(list: readonly T[], by: number): T[] {
  const first = by % list.length;
  return [...list.slice(first), ...list.slice(0, first)];
}

function outcome(question: EvalQuestion, replies: readonly Reply[]): Outcome {
  return {
    answers: replies.map(({ text }) => text),
    score: mean(replies.map(({ text }) => score(text, question))),
    tokens: mean(replies.map(({ tokens }) => tokens)),
    ms: meanParts(replies.map(({ parts }) => parts)),
  };
}

function meanParts(replies: readonly Parts[]): Parts {
  const names = Object.keys(replies[0]);
  return Object.fromEntries(names.map((name) => [name, rounded(mean(replies.map((parts) => parts[name])))]));
}

/** Microseconds: the file of answers holds no more. */
const rounded = (milliseconds: number) => Math.round(milliseconds * 1000) / 1000;

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
