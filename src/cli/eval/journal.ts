/**
 * The file of answers: a line of settings, then one line for each question that was asked. It is only ever appended to, so that an
 * evaluation that was stopped goes on behind its last whole line.
 */
import { appendFile, truncate } from 'node:fs/promises';
import { DesapError, describe, mismatch } from '../../errors.js';
import { isFile, readText } from '../../files.js';
import { writeWhole } from '../../output-file.js';
import type { Parts } from './examinee.js';

/** What came of one row of the results for one question; the mean where a method draws. */
export interface Outcome {
  /** One, or one of each draw. */
  readonly answers: readonly string[];
  readonly score: number;
  readonly tokens: number;
  readonly ms: Parts;
}

/** A question that was answered. */
export interface Answered {
  /** In the file of questions. */
  readonly line: number;
  readonly type?: string;
  /** By the rows' names. */
  readonly results: Readonly<Record<string, Outcome>>;
}

/** A question that could not be asked. */
export interface Skipped {
  readonly line: number;
  /** Why. */
  readonly skipped: string;
}

export type Entry = Answered | Skipped;

/** What has to be the same for answers to belong together. */
export type Settings = Readonly<Record<string, unknown>>;

export class Journal {
  private constructor(
    private readonly path: string | null,
    /** What was answered before, by line. A question that was skipped is asked again. */
    readonly answered: ReadonlyMap<number, Answered>,
  ) {}

  /** One that is not kept. */
  static none(): Journal {
    return new Journal(null, new Map());
  }

  /**
   * Opens a file of answers, or begins one.
   * @throws DesapError `ERR_FILE` for a file that is none; `ERR_VALUE` for answers that were made with other settings
   */
  static async open(path: string, settings: Settings): Promise<Journal> {
    const head = `${JSON.stringify({ settings })}\n`;
    const text = (await isFile(path)) ? await readText(path) : '';
    // None yet, or one that was stopped within its first line.
    if (text.length < head.length && head.startsWith(text)) {
      await writeWhole(path, new TextEncoder().encode(head));
      return new Journal(path, new Map());
    }
    const whole = text.slice(0, text.lastIndexOf('\n') + 1);
    const [first, ...entries] = whole
      .split('\n')
      .slice(0, -1)
      .map((line, i) => parsed(path, i + 1, line));
    compare(path, (first as { settings?: Settings } | undefined)?.settings, settings);
    // What was being written when the run was stopped.
    if (whole.length < text.length) await fileError(path, truncate(path, Buffer.byteLength(whole)));
    const answered = (entries as Entry[]).filter((entry) => 'results' in entry);
    return new Journal(path, new Map(answered.map((entry) => [entry.line, entry])));
  }

  async append(entry: Entry): Promise<void> {
    if (this.path !== null) await fileError(this.path, appendFile(this.path, `${JSON.stringify(entry)}\n`));
  }
}

function parsed(path: string, line: number, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new DesapError('ERR_FILE', `${path}:${line}: is not JSON: ${(error as Error).message}`, { cause: error });
  }
}

function compare(path: string, before: Settings | undefined, now: Settings): void {
  if (before === undefined)
    throw mismatch('ERR_FILE', path, 'no settings in its first line', 'a file of answers of desap eval');
  for (const name of new Set([...Object.keys(before), ...Object.keys(now)])) {
    const [was, is] = [before[name], now[name]].map((value) => JSON.stringify(value));
    if (was === is) continue;
    const got = `answers with the ${name} ${was ?? describe(undefined)}`;
    throw mismatch('ERR_VALUE', path, got, `${is ?? describe(undefined)}, or another --out`);
  }
}

function fileError<T>(path: string, writing: Promise<T>): Promise<T> {
  return writing.catch((cause: Error) => {
    throw new DesapError('ERR_FILE', `${path}: cannot be written: ${cause.message}`, { cause });
  });
}
