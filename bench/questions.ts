/** The example model's evaluation questions, and paired differences between ways of answering them. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { pairedDifference } from '../src/cli/eval/statistics.js';
import { Llava } from '../src/cli/llava/llava.js';
import type { LlavaVision } from '../src/vision/llava.js';
import type { LlavaImage } from '../src/vision/llava-image.js';

export const MODELS = fileURLToPath(new URL('../models', import.meta.url));
export const RESULTS = fileURLToPath(new URL('./results', import.meta.url));
export const KEEPS: readonly number[] = [48, 32, 16, 8];

/** One question about an encoded image. */
export interface Asked {
  readonly question: string;
  readonly answer: string;
  readonly image: LlavaImage;
  readonly analysis: Awaited<ReturnType<LlavaImage['analysis']>>;
  readonly vision: LlavaVision;
  /** Whether the language model gives the right answer from what was kept. */
  isRight(kept: Awaited<ReturnType<Asked['analysis']['prune']>>): Promise<boolean>;
}

/** What a function makes of each of the 400 questions, in their order. */
export async function eachQuestion<T>(ask: (asked: Asked) => Promise<T>): Promise<T[]> {
  const lines = (await readFile(join(MODELS, 'eval', 'questions.jsonl'), 'utf8')).trim().split('\n');
  const questions = lines.map((line) => JSON.parse(line) as Record<'image' | 'question' | 'answer', string>);
  const llava = await Llava.open(join(MODELS, 'tiny-llava'), { clip: join(MODELS, 'tiny-clip') });
  const vision = llava.vision as LlavaVision;
  const made: T[] = [];
  for (const { image: file, question, answer } of questions) {
    using seen = await llava.see(join(MODELS, 'eval', file));
    const image = seen.image as LlavaImage;
    const analysis = await image.analysis();
    const isRight: Asked['isRight'] = async (kept) => {
      const features = await vision.project(kept.tokens);
      return (await llava.complete({ features, kept }, question, {})).text === answer;
    };
    made.push(await ask({ question, answer, image, analysis, vision, isRight }));
    if (process.stderr.isTTY) process.stderr.write(`\r${made.length}/${questions.length}`);
  }
  await llava.dispose();
  return made;
}

export const mean = (values: readonly number[]) => values.reduce((sum, one) => sum + one, 0) / values.length;

/** A mean over questions, and its difference to another over the same, with its standard error. */
export interface Paired {
  readonly percent: number;
  readonly difference: number;
  readonly error: number;
}

export function paired(percents: readonly number[], beside: readonly number[]): Paired {
  const { mean: difference, error } = pairedDifference(percents, beside);
  return { percent: mean(percents), difference, error: error as number };
}

/** "+1.00 ± 0.50" */
export const signed = ({ difference, error }: Paired) =>
  `${difference < 0 ? '' : '+'}${difference.toFixed(2)} ± ${error.toFixed(2)}`;

/** A row of a table in Markdown. */
export const row = (...cells: readonly string[]) => `| ${cells.join(' | ')} |`;
