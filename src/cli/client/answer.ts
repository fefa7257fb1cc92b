import type { PreTrainedModel, PreTrainedTokenizer, Tensor } from '@huggingface/transformers';
import { DesapError, invalid } from '../../errors.js';
import { type AttachOptions, attach, type PrunedImage } from '../../transformers/index.js';
import { checkQuestion } from '../../vision/check-question.js';
import { readImage } from '../../vision/image/source.js';
import { type Dtype, readConfig } from '../../vision/model-folder.js';
import { readTextFiles } from '../../vision/text-files.js';
import type { Answered } from '../answers.js';
import { MAX_NEW_TOKENS, readGeneration } from '../generation.js';
import { formPrompt, type PromptForm, requireTemplate, templatePrompt } from '../llava/prompt.js';
import { type Client, openClient } from './load.js';
import type { ClientInputs, ClientParts, Processing } from './processing.js';

/** A question about an image, for a model that Transformers.js runs. */
export interface ClientQuestion {
  readonly image: string;
  readonly question: string;
  readonly prompt?: PromptForm;
  readonly dtype?: Dtype;
  readonly maxNewTokens?: number;
  /** How to prune; null: not at all. */
  readonly pruning: Omit<AttachOptions, 'model' | 'question' | 'onPruned'> | null;
}

/**
 * Answers through the installed Transformers.js, greedily.
 * @throws DesapError `ERR_FILE` for missing files; `ERR_MISSING_PACKAGE`; as `attach`
 */
export async function answerThroughClient(
  folder: string,
  processing: Processing,
  asked: ClientQuestion,
): Promise<Answered> {
  const question = checkQuestion(asked.question);
  const client = await openClient(folder);
  const { data, width, height } = await readImage(asked.image);
  const image = new client.transformers.RawImage(data, width, height, 3);
  const { text, ...tokens } = await promptOf(folder, processing, { ...asked, question });
  const { model, ...parts } = await load(client, asked.dtype, processing.loader);
  try {
    const inputs = await processing.call({ ...parts, ...tokens, model }, text, image);
    const visual = countOf(inputs.input_ids, tokens.imageTokenId);
    let kept: PrunedImage | undefined;
    if (asked.pruning !== null)
      await attach(model, {
        ...asked.pruning,
        ...{ model: folder, question },
        onPruned: ([first]) => {
          kept = first;
        },
      });
    const generation = await readGeneration(folder);
    const start = performance.now();
    const output = await model.generate({
      ...inputs,
      ...{ do_sample: false, max_new_tokens: asked.maxNewTokens ?? generation.max_new_tokens ?? MAX_NEW_TOKENS },
    } as never);
    const generate = performance.now() - start;
    const length = inputs.input_ids.dims[1];
    const ids = ((output as Tensor).tolist()[0] as bigint[]).slice(length).map(Number);
    const count = kept?.indices.length ?? visual;
    return {
      ...{ text: parts.tokenizer.decode(ids, { skip_special_tokens: true }).trim(), ids },
      ...{ tokens: count, promptTokens: length - visual + count, timings: { generate } },
      ...(kept && { pruned: kept }),
    };
  } finally {
    await model.dispose();
  }
}

/** The prompt with one placeholder in the image's place, and the token that stands for one visual token. */
async function promptOf(
  folder: string,
  { prompt: usual, placeholder, visual }: Processing,
  { question, prompt: form }: { question: string; prompt?: PromptForm },
) {
  const [config, { tokenizer, names, templates }] = await Promise.all([
    readConfig(folder) as Promise<{ image_token_id?: number; image_token_index?: number }>,
    readTextFiles(folder, 'reading prompts'),
  ]);
  const named = config.image_token_id ?? config.image_token_index;
  const imageTokenId = named ?? (visual === undefined ? undefined : tokenizer.token_to_id(visual));
  const imageToken = imageTokenId === undefined ? undefined : tokenizer.id_to_token(imageTokenId);
  if (imageTokenId === undefined || imageToken === undefined)
    throw new DesapError(
      'ERR_FILE',
      `${folder}/config.json: got image_token_id ${imageTokenId}, wanted the id of a token of tokenizer.json`,
    );
  const mark = placeholder ?? imageToken;
  for (const token of new Set([mark, imageToken]))
    if (question.includes(token)) throw invalid('ERR_VALUE', 'question', question, `a question without ${token}`);
  const own = form ?? (templates.length === 0 ? usual : undefined);
  const write = own === undefined ? templatePrompt(requireTemplate(folder, templates), mark) : formPrompt(own, mark);
  const text = write(question);
  // As in Hugging Face's processors: no second start token where the template writes one itself.
  const { bos_token: start } = names;
  const isTwice = start !== undefined && text.startsWith(start) && startsTwice(tokenizer.encode(text).ids);
  return { text: isTwice ? text.slice(start.length) : text, imageToken, imageTokenId };
}

function startsTwice([first, second]: readonly number[]): boolean {
  return first === second;
}

async function load(
  { transformers, id, load }: Client,
  dtype: Dtype = 'fp32',
  loader: NonNullable<Processing['loader']> | 'AutoModelForImageTextToText' = 'AutoModelForImageTextToText',
): Promise<Pick<ClientParts, 'processor' | 'model'> & { tokenizer: PreTrainedTokenizer }> {
  const { AutoProcessor, AutoTokenizer } = transformers;
  const processor = await load(AutoProcessor.from_pretrained(id));
  const tokenizer = processor.tokenizer ?? (await load(AutoTokenizer.from_pretrained(id)));
  const model: PreTrainedModel = await load(transformers[loader].from_pretrained(id, { dtype }));
  return { processor, tokenizer, model };
}

/** Visual tokens of a prompt; Phi-3.5-vision's processor negates their ids. */
function countOf(ids: ClientInputs['input_ids'], token: number): number {
  return (ids.data as BigInt64Array).reduce((count, id) => count + Number(Math.abs(Number(id)) === token), 0);
}
