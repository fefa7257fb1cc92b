import { alternatives, invalid, mismatch } from '../errors.js';

/** Families of models whose servers take rows of visual tokens, by `model_type` of the server's `config.json`. */
export type ServedModel = (typeof SERVED)[number];

/** Takes any rows of an image: it counts those that come. */
const ANY_ROWS = ['llava', 'llava_next', 'llava_onevision'] as const;
/** Takes the rows of a grid: it counts and places them by `image_grid_thw`. */
const GRIDS = ['qwen2_vl', 'qwen2_5_vl', 'qwen3_vl'] as const;
const SERVED = [...ANY_ROWS, ...GRIDS] as const;

/** Adds rows of its deepstack layers to each row. */
export const DEEPSTACK: ServedModel = 'qwen3_vl';

const NO_ROWS = 'vLLM 0.32.0 takes no image_embeds of it';
const NO_ROWS_OF: Readonly<Record<string, string>> = {
  paligemma: NO_ROWS,
  gemma3: NO_ROWS,
  idefics3: NO_ROWS,
  smolvlm: NO_ROWS,
};

const BOTH_WAYS = 'its visual tokens see each other both ways, which a prompt of embeddings does not tell the server';
const THREE_AXES = 'its positions have three axes, which a prompt of embeddings loses: the server answers, and wrongly';
const NO_PROMPT_OF: Readonly<Record<string, string>> = {
  paligemma: BOTH_WAYS,
  gemma3: BOTH_WAYS,
  ...Object.fromEntries(GRIDS.map((type) => [type, THREE_AXES])),
};

/** @throws DesapError `ERR_VALUE` */
function servedAs<T extends string>(given: T, taken: readonly T[], reasons: Readonly<Record<string, string>>): T {
  if (taken.includes(given)) return given;
  if (typeof given === 'string' && Object.hasOwn(reasons, given))
    throw mismatch('ERR_VALUE', 'modelType', `'${given}'`, `${alternatives(taken)}: ${reasons[given]}`);
  throw invalid('ERR_VALUE', 'modelType', given, `${alternatives(taken)}: no other was tried against a server`);
}

/** A model that takes rows of an image. */
export const servedByRows = (modelType: ServedModel): ServedModel =>
  servedAs<ServedModel>(modelType, SERVED, NO_ROWS_OF);

/** A model that takes a whole prompt as embeddings. */
export const servedByPrompt = (modelType: ServedModel): ServedModel =>
  servedAs<ServedModel>(modelType, ANY_ROWS, NO_PROMPT_OF);

/** Whether it places rows by a grid. */
export const hasGrid = (modelType: ServedModel): boolean => GRIDS.some((type) => type === modelType);
