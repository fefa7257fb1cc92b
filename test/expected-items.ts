/** What an independent implementation computed for the first 100 questions of the example model: models/expected.json. */
import { readFileSync } from 'node:fs';

export interface ExpectedItem {
  readonly item: number;
  /** Relative to models/eval. */
  readonly image: string;
  readonly question: string;
  readonly kept: readonly number[];
  /** 0 task, 1 saliency. */
  readonly source: readonly number[];
  /** Answers with all tokens and with the kept ones. */
  readonly full: string;
  readonly pruned: string;
}

const expected = JSON.parse(readFileSync('models/expected.json', 'utf8'));

export const items: readonly ExpectedItem[] = expected.items;

/** Items with a tie in float32 at a cut. */
export const close: ReadonlySet<number> = new Set(expected.about.close);

export const keep: number = expected.about.method.keep;
