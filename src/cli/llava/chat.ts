import { join } from 'node:path';
import type { Tokenizer } from '@huggingface/tokenizers';
import { DesapError, invalid } from '../../errors.js';
import { readJson, readJsonIfThere } from '../../files.js';
import { readTextFiles } from '../../vision/text-files.js';
import { formPrompt, type PromptForm, type PromptWriter, requireTemplate, templatePrompt } from './prompt.js';

interface GenerationConfig {
  eos_token_id?: number | number[] | null;
  max_new_tokens?: number | null;
}

interface ModelConfig extends GenerationConfig {
  image_token_id?: number;
  image_token_index?: number;
  text_config?: GenerationConfig;
}

/** The text side of a LLaVA folder: questions to token ids, token ids to answers, and which tokens end an answer. */
export class Chat {
  private constructor(
    private readonly tokenizer: Tokenizer,
    private readonly write: PromptWriter,
    private readonly startToken: string | undefined,
    private readonly imageToken: string,
    /** The placeholder of one visual token. */
    readonly imageTokenId: number,
    readonly endTokens: ReadonlySet<number>,
    readonly maxNewTokens: number,
  ) {}

  /**
   * @param form the prompt's form; default: that of the folder's chat template
   * @throws DesapError `ERR_FILE` for missing files, and for a chat template that is missing or cannot be used; `ERR_VALUE` for a form
   *   without its parts; `ERR_MISSING_PACKAGE`
   */
  static async open(folder: string, form?: PromptForm): Promise<Chat> {
    const [config, given, files] = await Promise.all([
      readJson<ModelConfig>(join(folder, 'config.json')),
      readJsonIfThere<GenerationConfig>(join(folder, 'generation_config.json')),
      readTextFiles(folder, 'reading prompts'),
    ]);
    const { tokenizer, names, templates } = files;
    const imageTokenId = config.image_token_id ?? config.image_token_index ?? idOf(tokenizer, names.image_token);
    const imageToken = imageTokenId === undefined ? undefined : tokenizer.id_to_token(imageTokenId);
    if (imageTokenId === undefined || imageToken === undefined)
      throw new DesapError(
        'ERR_FILE',
        `${join(folder, 'config.json')}: got image_token_id ${imageTokenId}, wanted the id of a token of tokenizer.json`,
      );
    const end =
      given?.eos_token_id ??
      config.eos_token_id ??
      config.text_config?.eos_token_id ??
      idOf(tokenizer, names.eos_token) ??
      [];
    return new Chat(
      tokenizer,
      form === undefined
        ? templatePrompt(requireTemplate(folder, templates), imageToken)
        : formPrompt(form, imageToken),
      names.bos_token,
      imageToken,
      imageTokenId,
      new Set([end].flat()),
      given?.max_new_tokens ?? 128,
    );
  }

  /**
   * The prompt of a question, with `patches` placeholders for the image, and where they begin.
   * @throws DesapError `ERR_VALUE` for a question with a placeholder of its own
   */
  prompt(question: string, patches: number): { ids: number[]; at: number } {
    const text = this.write(question);
    // As in Hugging Face's processors: no second start token where the template writes one itself.
    const starts = this.startToken !== undefined && text.startsWith(this.startToken);
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: !starts });
    const at = ids.indexOf(this.imageTokenId);
    if (at < 0 || ids.includes(this.imageTokenId, at + 1))
      throw invalid('ERR_VALUE', 'question', question, `a question without ${this.imageToken}`);
    ids.splice(at, 1, ...new Array<number>(patches).fill(this.imageTokenId));
    return { ids, at };
  }

  /** The text of generated tokens. */
  text(ids: readonly number[]): string {
    if (ids.length === 0) return '';
    return this.tokenizer.decode([...ids], { skip_special_tokens: true }).trim();
  }
}

function idOf(tokenizer: Tokenizer, token: string | undefined): number | undefined {
  return token === undefined ? undefined : tokenizer.token_to_id(token);
}
