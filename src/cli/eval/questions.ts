/** The file of questions: one JSON object a line; docs/eval.md has its fields. */
import { dirname, resolve } from 'node:path';
import { alternatives, DesapError, describe } from '../../errors.js';
import { readText } from '../../files.js';
import { type Key, letterOf, plain, SCORINGS, type Scoring } from './scoring.js';

/** One question about one image. */
export interface EvalQuestion extends Key {
  /** Its line in the file, from 1 on. */
  readonly line: number;
  /** Path of the image file. */
  readonly image: string;
  /** What the pruner gets. */
  readonly question: string;
  /** What the language model gets: the question, its choices, and how to answer. */
  readonly told: string;
  /** Which kind of question it is, for accuracies by kind. */
  readonly type?: string;
}

/** A question as its line has it. */
interface Line {
  readonly image?: unknown;
  readonly question?: unknown;
  readonly answer?: unknown;
  readonly choices?: unknown;
  readonly scoring?: unknown;
  readonly instruction?: unknown;
  readonly type?: unknown;
}

export interface QuestionFileOptions {
  /** Folder that image paths are relative to; default: that of the file. */
  readonly images?: string;
  /** How answers are judged where a line does not say it; default: `choice` with choices, `any` of several answers, else `exact`. */
  readonly scoring?: Scoring;
}

/** LLaVA's words for it. */
const CHOOSE = "Answer with the option's letter from the given choices directly.";
/** The soft score of one person's answer needs three others. */
const PEOPLE = 4;
const LETTERS = 26;

/**
 * Reads a file of questions. Blank lines are left out.
 * @throws DesapError `ERR_FILE` for a missing file, one without questions, and a line that is none, with its number
 */
export async function readQuestions(path: string, options: QuestionFileOptions = {}): Promise<EvalQuestion[]> {
  const text = await readText(path);
  const questions = text
    .split('\n')
    .flatMap((line, i) => (line.trim() === '' ? [] : [questionOf(path, i + 1, line, options)]));
  if (questions.length > 0) return questions;
  throw new DesapError('ERR_FILE', `${path}: got no question, wanted at least one, as a JSON object on a line`);
}

function questionOf(path: string, line: number, text: string, { images, scoring }: QuestionFileOptions): EvalQuestion {
  const fail = (message: string): never => {
    throw new DesapError('ERR_FILE', `${path}:${line}: ${message}`);
  };
  const wanted = (name: keyof Line, value: unknown, what: string) =>
    fail(`${name}: got ${describe(value)}, wanted ${what}`);
  const given = parsed(text, fail);
  const word = (name: keyof Line): string => {
    const value = given[name];
    return typeof value === 'string' && value.trim() !== '' ? value : wanted(name, value, 'a text');
  };
  const words = (name: keyof Line): string[] => {
    const value = given[name];
    const isList = Array.isArray(value) && value.length > 0 && value.every((one) => typeof one === 'string');
    return isList ? value : wanted(name, value, 'a list of texts');
  };
  const optional = (name: keyof Line) => (given[name] === undefined ? undefined : word(name));

  const answers = typeof given.answer === 'string' ? [word('answer')] : words('answer');
  const choices = given.choices === undefined ? undefined : words('choices');
  const usual = choices ? 'choice' : answers.length > 1 ? 'any' : 'exact';
  const how = (optional('scoring') ?? scoring ?? usual) as Scoring;
  if (!SCORINGS.includes(how)) wanted('scoring', how, alternatives(SCORINGS));
  if (how !== 'any' && how !== 'vqa' && answers.length > 1)
    wanted('answer', answers, `one text with scoring '${how}', or scoring 'any' or 'vqa'`);
  if (how === 'vqa' && answers.length < PEOPLE)
    wanted('answer', answers, `the answers of at least ${PEOPLE} people with scoring 'vqa'`);
  if (how === 'yes-no' && !['yes', 'no'].includes(plain(answers[0])))
    wanted('answer', answers[0], "'yes' or 'no' with scoring 'yes-no'");
  if (how === 'choice' && choices === undefined) wanted('choices', choices, "a list of texts with scoring 'choice'");
  if (how === 'choice' && !choices?.includes(answers[0])) wanted('answer', answers[0], 'one of the choices');
  if (choices && new Set(choices.map(plain)).size < choices.length) wanted('choices', choices, 'each choice once');
  if ((choices?.length ?? 0) > LETTERS) wanted('choices', choices, `at most ${LETTERS}`);

  const question = word('question');
  const instruction = optional('instruction') ?? (choices ? CHOOSE : undefined);
  const told = [question, ...(choices ?? []).map((choice, i) => `${letterOf(i)}. ${choice}`), instruction];
  return {
    line,
    image: resolve(images ?? dirname(path), word('image')),
    question,
    told: told.filter((part) => part !== undefined).join('\n'),
    scoring: how,
    answers,
    ...(choices && { choices }),
    ...(given.type !== undefined && { type: word('type') }),
  };
}

function parsed(text: string, fail: (message: string) => never): Line {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return fail(`is not JSON: ${(error as Error).message}`);
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value;
  return fail(`got ${describe(value)}, wanted a JSON object with image, question and answer`);
}
