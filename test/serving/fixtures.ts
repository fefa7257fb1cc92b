/** Requests that vLLM 0.32.0 answered, and its answers. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT } from '../support.js';

export const FOLDER = join(ROOT, 'test/fixtures/vllm');

export interface Answer {
  readonly name: string;
  readonly path: string;
  readonly status: number;
  readonly prompt_tokens?: number;
  readonly error?: { readonly message: string };
}

const { D, cases } = JSON.parse(readFileSync(join(FOLDER, 'expected.json'), 'utf8')) as { D: number; cases: Answer[] };

/** Width of the rows. */
export const WIDTH = D;
export const ANSWERS: readonly Answer[] = cases;

type Embeds = string | { image_embeds: string; image_grid_thw: number[] };

/** What a request holds. */
export interface Request {
  readonly prompt_embeds?: string;
  readonly messages?: readonly {
    readonly content: readonly { readonly type: string; readonly image_embeds?: Embeds; readonly data?: string }[];
  }[];
}

export const requestText = (name: string): string => readFileSync(join(FOLDER, `requests/${name}.json`), 'utf8');
export const request = (name: string): Request => JSON.parse(requestText(name));

/** The parts of a request's one message that are images. */
export const parts = (name: string) =>
  (request(name).messages?.[0].content ?? []).filter(({ type }) => type === 'image_embeds');

/** The file of an image in base64. */
export const embeds = (name: string, image = 0): string => {
  const given = parts(name)[image].image_embeds as Embeds;
  return typeof given === 'string' ? given : given.image_embeds;
};
