import { join } from 'node:path';
import { readJsonIfThere } from '../files.js';

/** What is read of a folder's `generation_config.json`. */
export interface GenerationConfig {
  readonly eos_token_id?: number | readonly number[] | null;
  readonly max_new_tokens?: number | null;
  /** Ids that are never generated. */
  readonly suppress_tokens?: readonly number[] | null;
}

/** The longest answer where a folder does not say it. */
export const MAX_NEW_TOKENS = 128;

/** @throws DesapError `ERR_FILE` for a file that is not JSON */
export async function readGeneration(folder: string): Promise<GenerationConfig> {
  return (await readJsonIfThere<GenerationConfig>(join(folder, 'generation_config.json'))) ?? {};
}
