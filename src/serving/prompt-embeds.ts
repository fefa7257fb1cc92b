import { options as checked, type OptionNames } from '../options.js';
import { integer, type TensorLike } from '../tensor.js';
import type { EmbedsOptions } from './image-embeds.js';
import { rowsOf } from './rows.js';
import { servedByPrompt } from './served-models.js';
import { fileForm, tensorFile } from './tensor-file.js';

/** The field of a request to `/v1/completions` that stands for the whole prompt. The request has no `prompt` beside it. */
export interface PromptEmbeds {
  /** A torch file in base64. */
  readonly prompt_embeds: string;
}

const NAMES: OptionNames<EmbedsOptions> = { modelType: true, hiddenSize: true, dtype: true };

/**
 * A whole prompt as embeddings, for a request to vLLM's `/v1/completions`: the rows of the text's tokens with the visual tokens among them,
 * as they go into the language model. Requests may have any number of visual tokens at one time. The server needs
 * `--enable-prompt-embeds`, and numbers the rows 0 .. S - 1: positions are `compact`.
 *
 * @param embeds [S, D] or [1, S, D], float32 or float16
 * @throws DesapError as {@link toImageEmbeds}; `ERR_VALUE` for a model that would answer wrongly
 */
export function toPromptEmbeds(embeds: TensorLike, options: EmbedsOptions): PromptEmbeds {
  const { modelType, hiddenSize, dtype } = checked('options', options, NAMES);
  servedByPrompt(modelType);
  integer('hiddenSize', hiddenSize, 1, 2 ** 20);
  const form = fileForm(dtype);
  return { prompt_embeds: tensorFile('embeds', rowsOf('embeds', embeds, hiddenSize), form) };
}
