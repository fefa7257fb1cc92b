/** Questions of published benchmarks, as they are distributed, as lines of desap's own form. */
import { DesapError, describe, mismatch } from '../../errors.js';
import { readJson, readText } from '../../files.js';
import type { Scoring } from './scoring.js';

/** A line of the file of questions. */
export interface Line {
  readonly id: string | number;
  /** Name of the image file. */
  readonly image: string;
  readonly question: string;
  readonly answer: string | readonly string[];
  readonly scoring: Scoring;
  readonly type?: string;
}

/** Files of a benchmark. */
export interface Sources {
  readonly questions: string;
  /** VQAv2: the file of answers. */
  readonly annotations?: string;
}

export type Format = (typeof FORMATS)[number];
export const FORMATS = ['pope', 'gqa', 'textvqa', 'vqav2'] as const;

/**
 * Reads the questions of a benchmark.
 * @throws DesapError `ERR_FILE` for a missing file, and for what is not the benchmark's form, with the place; `ERR_VALUE` for annotations
 *   that the benchmark has not, or lacks
 */
export async function convert(format: Format, { questions, annotations }: Sources): Promise<Line[]> {
  if ((format === 'vqav2') === (annotations === undefined))
    throw mismatch(
      'ERR_VALUE',
      '--annotations',
      annotations ?? 'no file',
      format === 'vqav2' ? 'the file of annotations' : `no file for ${format}`,
    );
  return annotations === undefined ? READERS[format as keyof typeof READERS](questions) : vqav2(questions, annotations);
}

/** Data sets are larger than what comes with a model. */
const ANY_SIZE = Number.POSITIVE_INFINITY;

const READERS = { pope, gqa, textvqa };

/** Objects, one a line or all in a list (those of A-OKVQA and GQA): `question_id`, `image`, `text`, `label`. */
async function pope(path: string): Promise<Line[]> {
  const text = await readText(path);
  const all = /^\s*\[/.test(text) ? listed(path, jsonOf(path, text)) : lined(path, text);
  return all.map((from) => ({
    ...{ id: from.id('question_id'), question: from.text('text'), image: from.text('image') },
    ...{ answer: from.text('label'), scoring: 'yes-no' },
  }));
}

function lined(path: string, text: string): Fields[] {
  return text.split('\n').flatMap((line, i) => {
    const place = `${path}:${i + 1}`;
    return line.trim() === '' ? [] : [fields(place, jsonOf(place, line))];
  });
}

function listed(path: string, list: unknown): Fields[] {
  return (list as unknown[]).map((one, i) => fields(`${path}: [${i}]`, one));
}

/** An object by question: `imageId`, `question`, `answer`, `types.structural`. */
async function gqa(path: string): Promise<Line[]> {
  return Object.entries(await readJson(path, ANY_SIZE)).map(([id, value]) => {
    const from = fields(`${path}: ${id}`, value);
    const types = from.given.types as { structural?: string } | undefined;
    return {
      ...{ id, image: `${from.id('imageId')}.jpg`, question: from.text('question'), answer: from.text('answer') },
      scoring: 'exact',
      ...(typeof types?.structural === 'string' && { type: types.structural }),
    };
  });
}

/** `data`: a list of `question_id`, `image_id`, `question`, `answers`. */
async function textvqa(path: string): Promise<Line[]> {
  return listOf(path, await readJson(path, ANY_SIZE), 'data').map((from) => ({
    ...{ id: from.id('question_id'), image: `${from.id('image_id')}.jpg`, question: from.text('question') },
    ...{ answer: from.texts('answers'), scoring: 'vqa' },
  }));
}

/**
 * Questions: `data_subtype`, and `questions`, a list of `question_id`, `image_id`, `question`. Annotations: `annotations`, a list of
 * `question_id`, `answer_type`, and `answers`, each with `answer`.
 */
async function vqav2(path: string, annotations: string): Promise<Line[]> {
  const file = await readJson(path, ANY_SIZE);
  const split = fields(path, file).text('data_subtype');
  const answers = new Map(
    listOf(annotations, await readJson(annotations, ANY_SIZE), 'annotations').map((from) => [
      from.id('question_id'),
      from,
    ]),
  );
  return listOf(path, file, 'questions').map((from) => {
    const id = from.id('question_id');
    const own = answers.get(id);
    if (own === undefined)
      throw mismatch('ERR_FILE', annotations, `no annotation of question ${id}`, 'one of each question');
    return {
      id,
      image: `COCO_${split}_${String(from.id('image_id')).padStart(12, '0')}.jpg`,
      question: from.text('question'),
      answer: own.list('answers').map((one) => one.string('answer')),
      scoring: 'vqa',
      type: own.text('answer_type'),
    };
  });
}

/** Fields of an object at a place in a file, checked. */
interface Fields {
  readonly given: Readonly<Record<string, unknown>>;
  text(name: string): string;
  /** May be empty, as the answers of some people are. */
  string(name: string): string;
  texts(name: string): string[];
  /** A text or a whole number. */
  id(name: string): string | number;
  list(name: string): Fields[];
}

function fields(place: string, value: unknown): Fields {
  if (typeof value !== 'object' || value === null) throw mismatch('ERR_FILE', place, describe(value), 'an object');
  const given = value as Record<string, unknown>;
  const checked = <T>(name: string, isGood: (one: unknown) => boolean, wanted: string): T => {
    if (isGood(given[name])) return given[name] as T;
    throw mismatch('ERR_FILE', `${place}: ${name}`, describe(given[name]), wanted);
  };
  const isText = (one: unknown) => typeof one === 'string' && one.trim() !== '';
  return {
    given,
    text: (name) => checked(name, isText, 'a text'),
    string: (name) => checked(name, (one) => typeof one === 'string', 'a text'),
    texts: (name) =>
      checked(
        name,
        (one) => Array.isArray(one) && one.length > 0 && one.every((text) => typeof text === 'string'),
        'a list of texts',
      ),
    id: (name) => checked(name, (one) => isText(one) || Number.isSafeInteger(one), 'a text or a whole number'),
    list: (name) =>
      checked<unknown[]>(name, Array.isArray, 'a list').map((one, i) => fields(`${place}: ${name}[${i}]`, one)),
  };
}

function listOf(path: string, file: object, name: string): Fields[] {
  return fields(path, file).list(name);
}

function jsonOf(place: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new DesapError('ERR_FILE', `${place}: is not JSON: ${(error as Error).message}`, { cause: error });
  }
}
