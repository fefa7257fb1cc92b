import { join } from 'node:path';
import type { Tokenizer } from '@huggingface/tokenizers';
import { DesapError, invalid } from '../errors.js';
import { isFile, readJson } from '../files.js';
import { optional } from '../optional.js';
import { type PromptForm, promptForm, writePrompt } from './prompt.js';

interface GenerationConfig {
  eos_token_id?: number | number[];
  max_new_tokens?: number;
}

interface ModelConfig extends GenerationConfig {
  image_token_id?: number;
  image_token_index?: number;
  text_config?: GenerationConfig;
}

/** The text side of a LLaVA folder, as its JSON files have it: prompts to token ids, token ids to answers, and when an answer ends. */
export class Chat {
  private constructor(
    private readonly tokenizer: Tokenizer,
    private readonly form: PromptForm,
    private readonly imageToken: string,
    /** The placeholder of one visual token. */
    readonly imageTokenId: number,
    readonly endTokens: ReadonlySet<number>,
    readonly maxNewTokens: number,
  ) {}

  /**
   * @param form the prompt's form; default: that of the folder's chat template
   * @throws DesapError `ERR_FILE`, `ERR_MISSING_PACKAGE`
   */
  static async open(folder: string, form?: PromptForm): Promise<Chat> {
    const generationFile = join(folder, 'generation_config.json');
    const [config, tokenizerFile, tokenizerConfig] = await Promise.all([
      readJson<ModelConfig>(join(folder, 'config.json')),
      readJson<object>(join(folder, 'tokenizer.json')),
      readJson<{ chat_template?: string }>(join(folder, 'tokenizer_config.json')),
    ]);
    const generation = (await isFile(generationFile)) ? await readJson<GenerationConfig>(generationFile) : {};
    const { Tokenizer } = await optional(
      () => import('@huggingface/tokenizers'),
      '@huggingface/tokenizers',
      'reading prompts',
    );
    const tokenizer = new Tokenizer(tokenizerFile, tokenizerConfig);
    const imageTokenId = config.image_token_id ?? config.image_token_index;
    const imageToken = imageTokenId === undefined ? undefined : tokenizer.id_to_token(imageTokenId);
    if (imageTokenId === undefined || imageToken === undefined)
      throw new DesapError(
        'ERR_FILE',
        `${join(folder, 'config.json')}: got image_token_id ${imageTokenId}, wanted the id of a token of tokenizer.json`,
      );
    const end = generation.eos_token_id ?? config.eos_token_id ?? config.text_config?.eos_token_id ?? [];
    return new Chat(
      tokenizer,
      form ?? promptForm(tokenizerConfig.chat_template, imageToken),
      imageToken,
      imageTokenId,
      new Set([end].flat()),
      generation.max_new_tokens ?? 128,
    );
  }

  /**
   * The prompt of a question, with `patches` placeholders for the picture, and where they begin.
   * @throws DesapError `ERR_VALUE` when the question brings a placeholder of its own
   */
  prompt(question: string, patches: number): { ids: number[]; at: number } {
    const { ids } = this.tokenizer.encode(writePrompt(this.form, this.imageToken, question));
    const at = ids.indexOf(this.imageTokenId);
    if (at < 0 || ids.includes(this.imageTokenId, at + 1))
      throw invalid('ERR_VALUE', 'question', question, `a question without ${this.imageToken}`);
    ids.splice(at, 1, ...new Array<number>(patches).fill(this.imageTokenId));
    return { ids, at };
  }

  /** The text of generated tokens. */
  text(ids: readonly number[]): string {
    return this.tokenizer.decode([...ids], { skip_special_tokens: true }).trim();
  }
}
