/** How much files and callers may ask for, in one place. */
import { invalid } from './errors.js';
import { type OptionNames, options } from './options.js';

/** What is refused when it is larger, with the number. docs/limits.md says what each keeps from happening. */
export interface Limits {
  /** Bytes of one text or question, in UTF-8; default 16384. A tower runs once for each window of it. */
  readonly textBytes: number;
  /** Tokens of one text, question or prompt, by the tokenizer that reads it, without visual ones; default 4096. */
  readonly promptTokens: number;
  /** Pixels of one decoded image; default 178956970, as in Pillow. */
  readonly imagePixels: number;
  /** Bytes of the file of one image; default 2^29. */
  readonly imageBytes: number;
  /** Numbers of a trial image that is as large as a graph declares its images; default 2^24. */
  readonly trialNumbers: number;
  /** Nodes of a graph, initialisers, inputs, outputs, recorded values, and fields beside the graph, each; default 50000. */
  readonly graphNodes: number;
  /** Bytes of the header of a safetensors file; default 100 MiB, which the format allows. */
  readonly headerBytes: number;
  /** Bytes of a JSON file of a model, such as tokenizer.json; default 2^27. */
  readonly jsonBytes: number;
  /** Whether a file that a model names (external data, a shard) may be a link out of the model's folder; default false. */
  readonly linksOut: boolean;
}

const NAMES: OptionNames<Limits> = {
  ...{ textBytes: true, promptTokens: true, imagePixels: true, imageBytes: true, trialNumbers: true },
  ...{ graphNodes: true, headerBytes: true, jsonBytes: true, linksOut: true },
};

let current: Limits = Object.freeze({
  textBytes: 2 ** 14,
  promptTokens: 2 ** 12,
  imagePixels: 178_956_970,
  imageBytes: 2 ** 29,
  trialNumbers: 2 ** 24,
  graphNodes: 50_000,
  headerBytes: 100 * 2 ** 20,
  jsonBytes: 2 ** 27,
  linksOut: false,
});

/**
 * The limits of this thread. Those that are given hold from now on; `Infinity` is none.
 *
 * ```ts
 * limits({ textBytes: 4096, imagePixels: 50e6 });
 * ```
 *
 * @returns all of them, as they are now
 * @throws DesapError `ERR_VALUE` for an unknown name, and for a number that is neither a positive integer nor Infinity
 */
export function limits(given?: Partial<Limits>): Limits {
  if (given === undefined) return current;
  const wanted = options<Partial<Limits>>('limits', given, NAMES);
  const { linksOut, ...numbers } = wanted;
  for (const [name, value] of Object.entries(numbers))
    if (!(Number.isSafeInteger(value) && value > 0) && value !== Number.POSITIVE_INFINITY)
      throw invalid('ERR_VALUE', `limits.${name}`, value, 'a positive integer, or Infinity');
  if (linksOut !== undefined && typeof linksOut !== 'boolean')
    throw invalid('ERR_VALUE', 'limits.linksOut', linksOut, 'true or false');
  current = Object.freeze({ ...current, ...wanted });
  return current;
}
