import type { PreTrainedModel, PreTrainedTokenizer, Tensor } from '@huggingface/transformers';
import { DesapError, invalid } from '../../errors.js';
import type { CallOptions } from '../../transformers/index.js';
import { checkQuestion, checkTokens } from '../../vision/check-text.js';
import { readImage } from '../../vision/image/source.js';
import { type Dtype, readConfig } from '../../vision/model-folder.js';
import { readTextFiles } from '../../vision/text-files.js';
import { MAX_NEW_TOKENS, readGeneration } from '../generation.js';
import { formPrompt, type PromptForm, requireTemplate, templatePrompt } from '../llava/prompt.js';
import { type Client, openClient } from './load.js';
import type { ClientInputs, ClientParts, Processing } from './processing.js';

/** How a model is opened. */
export interface ClientOptions {
  readonly prompt?: PromptForm;
  readonly dtype?: Dtype;
  readonly maxNewTokens?: number;
}

/** An image as Transformers.js takes it. */
export type ClientImage = Parameters<Processing['call']>[2];

/** A question about an image, as inputs of the model. */
export interface ClientPrompt {
  readonly inputs: ClientInputs;
  /** Tokens of the whole prompt, and how many of them are visual. */
  readonly length: number;
  readonly visual: number;
}

/** What the model generated. */
export interface ClientReply {
  readonly text: string;
  readonly ids: readonly number[];
  readonly milliseconds: number;
}

/** A model that the installed Transformers.js runs, greedily, one question about one image at a time. */
export class ClientModel {
  private constructor(
    private readonly folder: string,
    private readonly processing: Processing,
    private readonly client: Client,
    private readonly parts: Omit<ClientParts, 'imageToken'>,
    private readonly prompt: PromptForm | undefined,
    private readonly maxNewTokens: number,
  ) {}

  /** @throws DesapError `ERR_FILE` for missing files; `ERR_MISSING_PACKAGE` */
  static async open(
    folder: string,
    processing: Processing,
    { prompt, dtype, maxNewTokens }: ClientOptions = {},
  ): Promise<ClientModel> {
    const client = await openClient(folder);
    const { max_new_tokens } = await readGeneration(folder);
    const parts = await load(client, dtype, processing.loader);
    const longest = maxNewTokens ?? max_new_tokens ?? MAX_NEW_TOKENS;
    return new ClientModel(folder, processing, client, parts, prompt, longest);
  }

  /** What `attach` takes. */
  get model(): PreTrainedModel {
    return this.parts.model;
  }

  /** @throws DesapError `ERR_FILE` for a file that is missing or no image */
  async read(path: string): Promise<ClientImage> {
    const { data, width, height } = await readImage(path);
    return new this.client.transformers.RawImage(data, width, height, 3);
  }

  /**
   * A question as the model's inputs.
   * @throws DesapError `ERR_VALUE` for an empty question, one with a placeholder of its own, and one beyond the limits `textBytes` and
   *   `promptTokens`; `ERR_FILE` for a folder without a prompt
   */
  async ask(question: string, image: ClientImage): Promise<ClientPrompt> {
    const { text, ...tokens } = await promptOf(this.folder, this.processing, {
      question: checkQuestion(question),
      prompt: this.prompt,
    });
    const inputs = await this.processing.call({ ...this.parts, ...tokens }, text, image);
    const { input_ids } = inputs;
    return { inputs, length: input_ids.dims[1], visual: countOf(input_ids, tokens.imageTokenId) };
  }

  /** @param desap how an attached model prunes */
  async generate({ inputs, length }: ClientPrompt, desap?: CallOptions): Promise<ClientReply> {
    const start = performance.now();
    const output = await this.model.generate({
      ...inputs,
      ...{ do_sample: false, max_new_tokens: this.maxNewTokens, ...(desap && { desap }) },
    } as never);
    const milliseconds = performance.now() - start;
    const ids = ((output as Tensor).tolist()[0] as bigint[]).slice(length).map(Number);
    return { text: this.parts.tokenizer.decode(ids, { skip_special_tokens: true }).trim(), ids, milliseconds };
  }

  async dispose(): Promise<void> {
    await this.model.dispose();
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
  const { ids } = tokenizer.encode(text);
  checkTokens('question', ids.length);
  const isTwice = start !== undefined && text.startsWith(start) && startsTwice(ids);
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
