/** Prompts of test/fixtures/prompts: what Hugging Face's processors make of conversations, by template and tokenizer. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export const PROMPTS = 'test/fixtures/prompts';

export interface PromptCase {
  readonly template: string;
  readonly tokenizer: string;
  /** Id of the image token. */
  readonly image: number;
  readonly kind: string;
  /** The last user turn. */
  readonly words: string;
  readonly ids: readonly number[];
}

export const cases: readonly PromptCase[] = JSON.parse(readFileSync(join(PROMPTS, 'cases.json'), 'utf8'));
export const templates = [...new Set(cases.map(({ template }) => template))];
